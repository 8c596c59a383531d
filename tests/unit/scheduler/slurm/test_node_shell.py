"""How a node is asked for, and what srun's words mean."""

from __future__ import annotations

from liver_slurm.scheduler.slurm.node_shell import Place, explain, srun_arguments


def test_the_command_line() -> None:
    place = Place("gpu", gpus=1, account="physics", constraint="a100")
    arguments = srun_arguments(place, "exec true", "liver-doctor-x", 4.2)
    assert arguments[0] == "srun"
    for option in ("--partition=gpu", "--immediate=5", "--gres=gpu:1", "--account=physics", "--constraint=a100"):
        assert option in arguments
    assert not any(one.startswith(("--qos", "--exclude")) for one in arguments)
    assert arguments[-3:] == ["bash", "-c", "exec true"]
    assert not any(one.startswith("--gres") for one in srun_arguments(Place("cpu"), "", "x", 1))


def test_what_srun_says() -> None:
    busy = [
        "srun: job 7 queued and waiting for resources\n",
        "srun: error: Unable to allocate resources: Requested nodes are busy\n",
    ]
    assert explain(busy) == ("no free node", True)
    assert explain(
        ["/x/python: No module named liver_slurm\n", "srun: error: n1: task 0: Exited with exit code 1\n"]
    ) == (
        "/x/python: No module named liver_slurm",
        False,
    )
    assert explain(
        ["srun: error: Unable to allocate resources: Invalid account or account/partition combination\n"]
    ) == (
        "Unable to allocate resources: Invalid account or account/partition combination",
        False,
    )
