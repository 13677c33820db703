"""Command line of value-implicit pre-training; every field is in config.yaml beside this file."""

import os
import sys
from pathlib import Path

try:
    import hydra
except ImportError:
    sys.exit('pre-training needs its extra packages: pip install "torchrl-vip[pretrain]"')

from omegaconf import DictConfig, OmegaConf


@hydra.main(version_base=None, config_path=".", config_name="config")
def main(config: DictConfig) -> None:
    from torchrl_vip.pretrain import processes
    from torchrl_vip.pretrain.trainer import pretrain
    from torchrl_vip.weights import CheckpointError

    missing = OmegaConf.missing_keys(config)
    if missing:
        sys.exit(f"missing {', '.join(f'{k}=...' for k in sorted(missing))}; see --help.")
    try:
        final = pretrain(OmegaConf.to_container(config, resolve=True))
    except (ValueError, OSError, ImportError, CheckpointError) as error:
        sys.exit(f"error: {error}")
    except RuntimeError as error:
        if not processes.lost(error):
            raise
        sys.exit(
            f"error: process {os.environ['RANK']} lost the others ({str(error).splitlines()[0]}). "
            "Run the same command again: it goes on from the last checkpoint."
        )
    if int(os.environ.get("RANK", 0)):
        return
    print(f'done: load_vip("{final}")')


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):  # Hydra's own help drops the comments
        print(Path(__file__).with_name("config.yaml").read_text(), end="")
        sys.exit()
    from torchrl_vip.pretrain.check import quoted

    sys.argv[1:] = map(quoted, sys.argv[1:])
    # The run writes its own config.yaml into out_dir: no folder of Hydra's beside it.
    sys.argv[1:1] = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none",
                     "hydra/hydra_logging=none"]  # fmt: skip
    main()
