from __future__ import annotations

import contextlib
import gc

from liver_slurm.base.imports import quick_imports


def test_garbage_is_collected_again_afterwards_but_not_in_what_was_imported() -> None:
    kept = []
    with contextlib.suppress(ImportError), quick_imports():
        assert not gc.isenabled()
        kept.append([object()])
        raise ImportError
    try:
        assert gc.isenabled()
        assert not any(kept[0] is each for each in gc.get_objects())
    finally:
        gc.unfreeze()
