"""Students on disk: a Hugging Face folder that anyone can load.

checkpoint   written whole, loaded strictly
stock        plans that a plain mBART decoder can express
card         the folder's README: plan, costs, training, how to load it
"""
