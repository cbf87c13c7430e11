"""The shared trainer: the same for every student, whoever proposed its plan.

recipe    everything but the student, the pages and the seed; `presets` names papers' mixes
order     which questions make up which step
trainer   one step: losses, gradient, optimiser
inside    streams and attention of teacher and student, for losses that read them (`trace`)
distill   the loop: resume, divergence, progress, scalars for TensorBoard
"""
