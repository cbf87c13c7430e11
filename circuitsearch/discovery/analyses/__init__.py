"""The published analyses of Donut-MINT (arXiv 2509.26235), one per file; see `registry`.

material   teacher and pages that every analysis is given
registry   the analyses by name; a new one is one file and one row there
measures/  what they measure, as records of numbers
tables/    those records as tables and charts
plan_rule  from findings to plans
shared     intervals, their wording, and verdicts

An analysis returns a `core.findings.Finding`: tables, charts, and a verdict per claim.
"""
