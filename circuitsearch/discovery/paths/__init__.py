"""Paths: chains of sub-layers from a token or the page to a reader.

keyword     which chain carries a keyword to the query that reads the page (Donut-MINT, Prop. 4)
transforms  the linearised sub-layers that a keyword's chains are made of
measures    how well a chain's end stands in for the clean stream
rows        the same at every keyword token
table       the keyword's result as a record; needs no torch

scored      the score of every path from embedding and page to the logits or a query
best        the strongest of them where they are too many to list
neurons     feed-forwards as affine maps
linear      a clean run as a linear model of whole sequences
chains      all chains over linear steps, beginnings and endings shared
bounds      how much a linear step can amplify
targets     where scored paths end
scores      scored paths as records; needs no torch

search      the strongest paths of a circuit with a weight per edge; needs no torch
"""
