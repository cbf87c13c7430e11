"""Where a study lives: one database, changed by short transactions that any number of workers make.

connection     opens SQLite (WAL, BEGIN IMMEDIATE) or PostgreSQL; no password in any message
tables         our tables: studies, phases, claims, results
transactions   one locked step over them, on the database's own clock
rows           a claim or a result as a record
ledger         claim, renew, finish, hand back: the exact budget and one training per plan
workers        names, heartbeats and deaths of the processes that hold claims
mirror         Optuna's study of the finished trials, for other tools
registration   a study is made or met again; differences are refused field by field
recall         what samplers need of the finished trials
view           everything that a reader sees
"""
