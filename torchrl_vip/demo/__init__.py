"""The reward page: ``python -m torchrl_vip.demo``, in the browser, on this machine."""
