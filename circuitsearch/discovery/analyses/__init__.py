"""The published analyses of Donut-MINT (arXiv 2509.26235), one per file; see `registry`.

material   teacher and pages that every analysis is given
registry   the analyses by name; a new one is one file and one row there

An analysis returns a `core.findings.Finding`: tables, charts, and a verdict per claim.
"""
