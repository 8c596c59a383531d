"""``transformer_engine_rank.py FOLDER``: models with Transformer Engine's layers, each saved as Megatron-LM saves them.

megatron-core starts processes when it saves, which import this file: so it imports nothing else before it is run.
"""

import sys
from pathlib import Path


def main(folder: Path) -> None:
    """Save each dense model, and its weights by their names beside it."""
    import torch
    import torch.distributed as dist
    from megatron_lm import MODELS, arguments, build, lay_out
    from megatron_lm_rank import disturb, save, weights

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    lay_out(1, 1)
    for name in MODELS:
        if arguments(name).num_experts is None:
            model = build(arguments(name), engine=True)
            assert any(type(each).__module__.startswith("transformer_engine") for each in model.modules())
            disturb(model)
            save(folder / name / "saved", name, model, {"singleton_local_shards": False})
            torch.save(weights(model), folder / name / "weights.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
