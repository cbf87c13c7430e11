"""Students as ONNX files that answer with onnxruntime and tokenizers alone.

graphs    encoder and decoder with explicit keys and values
files     writes the folder
answers   the script that travels with it
check     do they answer as PyTorch does?
timing    and how fast?
"""
