"""One of two agents on this machine: python tests/fake_agent.py RANKS_JSON PORT NODE (see tests/fake_rank.py)."""

import sys

from cloc.training.agent import Part, run

if __name__ == "__main__":
    what, port, node = sys.argv[1:]
    sys.exit(
        run(Part(what, nodes=2, node=int(node), processes=2, port=int(port), timeout=240, module="tests.fake_rank"))
    )
