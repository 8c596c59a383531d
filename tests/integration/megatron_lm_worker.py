"""One rank of plain megatron-core: ``megatron_lm_worker.py RANK RANKS FOLDER tpNppN:WHAT[,WHAT]…``.

megatron-core starts processes when it saves, which import this file: so it imports nothing else before it is run.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    from megatron_lm_rank import main

    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
