"""Value-implicit pre-training: ``python -m torchrl_vip.pretrain data.path=CLIPS out_dir=RUN``."""
