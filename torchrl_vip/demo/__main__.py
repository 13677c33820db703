"""The reward page in your browser: how near is the robot to its goal, step by step?

    python -m torchrl_vip.demo

Drop a video, record one or choose a rendered example: the page draws its distance to a goal image, and the
reward of each step. Other tabs compare several attempts, and show the reward of an environment live.
It is served to this machine only, asks nothing of the internet, and keeps nothing.
"""

from __future__ import annotations

import argparse
import ipaddress
import sys
from collections.abc import Sequence
from pathlib import Path

from torchrl_vip.cli import program


def make_parser() -> argparse.ArgumentParser:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        prog=program("demo"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to serve at (%(default)s: this machine only)")
    add("--port", type=int, default=7860, help="0 is any free one (%(default)s)")
    add(
        "--checkpoint",
        action="append",
        default=[],
        metavar="PATH",
        help="a checkpoint to choose on the page; may be repeated",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see the module's docstring. Returns the exit code."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if not 0 <= args.port < 2**16:
        parser.error(f"--port {args.port}: wanted 0 to {2**16 - 1}")
    for path in args.checkpoint:
        if not Path(path).exists():
            parser.error(f"--checkpoint {path}: not there; wanted a checkpoint's folder or file")
    from torchrl_vip.demo.server import offline, serve

    offline()
    try:
        import gradio  # noqa: F401
    except ImportError:
        print('error: the page needs Gradio: pip install "torchrl-vip[page]"', file=sys.stderr)
        return 1
    local = is_loopback(args.host)
    if not local:
        print(
            f"warning: anyone who reaches {args.host} can use this page and this machine's processors; there "
            "is no password and no encryption. Leave --host out to serve this machine only.",
            file=sys.stderr,
        )

    def ready(port: int) -> None:
        host = f"[{args.host}]" if ":" in args.host else args.host
        print(f"The page is at http://{host}:{port} (Ctrl-C stops it)", flush=True)

    try:
        serve(args.host, args.port, args.checkpoint, local=local, ready=ready)
    except OSError as error:
        print(
            f"error: {args.host}:{args.port} cannot be served at ({error.strerror or error}); choose another "
            "--port or --host.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        pass
    return 0


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


if __name__ == "__main__":
    sys.exit(main())
