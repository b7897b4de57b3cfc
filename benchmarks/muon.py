"""A step of Muon over one of `torch.optim.Muon`, in processor time: the same matrices, turn by turn.

    python benchmarks/muon.py                           # the demo's matrices
    python benchmarks/muon.py --presets b16 --rounds 1  # an hour where bfloat16 is emulated

torch's computes in bfloat16; ours in float32 on a processor. Figures are medians of rounds, on one thread.
"""

import argparse
import statistics
import time

import torch

from cloc.config import load_preset
from cloc.model.configuration import from_settings
from cloc.model.modeling import CLOCModel
from cloc.model.muon import Muon
from cloc.model.optimizers import matrices


def weights_of(preset: str) -> list[torch.nn.Parameter]:
    """The matrices of a preset's model, with a gradient each."""
    config = load_preset(preset).model
    model = CLOCModel(from_settings(config, vocab_size=config.text.vocab_size, bos=0, eos=1, pad=1))
    own = matrices(model)
    weights = [weight for weight in model.parameters() if id(weight) in own]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    return weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["demo"])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | matrices | torch's, CPU-s | ours, CPU-s | ratio |\n|---|---|---|---|---|")
    for preset in arguments.presets:
        weights = weights_of(preset)
        optimizers = torch.optim.Muon(weights, adjust_lr_fn="match_rms_adamw"), Muon(weights)
        taken: tuple[list[float], list[float]] = ([], [])
        for round_ in range(arguments.rounds + 1):
            for optimizer, seconds in zip(optimizers, taken, strict=True):
                start = time.process_time()
                optimizer.step()
                if round_:  # the first makes the state
                    seconds.append(time.process_time() - start)
        theirs, ours = (statistics.median(seconds) for seconds in taken)
        print(f"| {preset} | {len(weights)} | {theirs:.3f} | {ours:.3f} | {ours / theirs:.2f} |", flush=True)


if __name__ == "__main__":
    main()
