"""Exact effects: remove or cut something, run the rest, compare the metric; the oracle.

components    what one component, or a pair of sub-layers, is worth: remove it, run the rest
edges         what one edge is worth: one reader takes the replacement of one writer
circuits      the metric of a whole circuit: every reader takes replacements over the edges cut
circuit_runs  the run of some circuits on one batch, stacked
queries       the query of one run asks the page of another
cuts          positions that no longer see others in a self-attention
runs          what edges and circuits share: stacked metrics, replaced pages, single heads
"""
