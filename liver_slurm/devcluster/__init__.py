"""A real multi-node Slurm on one machine, as any user: no root, no systemd, no cgroups.

``spec`` says what a cluster is and where its files lie, ``conf`` renders Slurm's files (pure), ``ports`` finds room
for it, ``processes`` finds and ends its daemons, ``accounting`` adds slurmdbd, and ``lifecycle`` is up, status, down.
"""
