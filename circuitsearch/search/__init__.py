"""Floor 4: the search over plans that fit a budget.

Plans are proposed, evaluated by a function that is handed in, and recorded in a database; nothing
here knows torch, teachers or students. Read in this order: `units`, `space` and `tree` (which
plans are feasible, and how many), `program` and `knapsack` (the best plan for given worths),
`worths` (what units are worth), `nearest` (plans from elsewhere), `elastic` (which plans an elastic
teacher is trained with), `exhaustive` and `sampled` (every plan, or many, sharing beginnings),
`samplers` (which plan to try next), `storage` (where results live), `study` (the resumable loop
over all of it), `transfer` and `upgrade` (studies that move).
"""
