"""The page itself: three tabs of Gradio components, and what happens at each event."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from torchrl_vip.demo import environments, measuring
from torchrl_vip.demo.comparing import Attempt, compare
from torchrl_vip.demo.measuring import NAMES, Wish
from torchrl_vip.demo.uploads import ATTEMPTS, MEGABYTES, SECONDS, Place, Refused, Visits
from torchrl_vip.demo.worker import Worker, WorkerError

LAST, FRAME, IMAGE = "its last frame", "another frame", "a picture"
VIDEOS = ["video", ".gif", ".mkv", ".avi"]
HEAD = """<div class="vip-head"><h1>How near is the robot to its goal?</h1>
<p>A goal image becomes a reward: the distance to it in VIP's embedding, step by step.</p></div>"""
LIMITS = (
    f"At most {MEGABYTES} MB and {SECONDS // 60} minutes; {measuring.MEASURED} frames of it are measured. "
    "It stays on the machine that runs this page, and is deleted when you leave."
)


class Page:
    """What happens at each event. A method's first argument is the visitor's session.

    Args:
        visits: of this server.
        root: a folder for rendered examples, which all visitors share.
        measurer, simulators: processes for videos and for environments.
        checkpoints: paths that may be chosen beside the package's encoders.
        any_path: whether visitors may name a path of their own, on the machine that runs this.
    """

    def __init__(
        self,
        visits: Visits,
        root: Path,
        measurer: Worker,
        simulators: Worker,
        checkpoints: list[str],
        any_path: bool,
    ):
        self.visits, self.root = visits, root
        self.measurer, self.simulators = measurer, simulators
        self.encoders = {**NAMES, **{path: measuring.label(path) for path in checkpoints}}
        self.any_path = any_path
        self._rendering = threading.Lock()
        self._tasks: dict[str, list[str]] = {}

    # -- one video ----------------------------------------------------------------------------------

    def take_video(self, session: str, upload: str) -> None:
        """A visitor's video, in place of the one before."""
        place = self.visits.place(session, "video")
        place.settings = {"source": place.take(upload), "name": Path(upload).name}

    def take_example(self, session: str, name: str) -> None:
        """A rendered example as the visitor's video."""
        path = self.example(name)
        place = self.visits.place(session, "video")
        place.settings = {"source": path, "name": path.name}

    def take_goal(self, session: str, upload: str, kind: str = "goal") -> None:
        """A visitor's goal image."""
        place = self.visits.place(session, kind)
        place.settings = {"source": place.take(upload), "name": Path(upload).name}

    def example(self, name: str) -> Path:
        """An example's video, rendered on first use."""
        path = self.root / (name.partition(" (")[0].replace(" ", "_") + ".mp4")
        with self._rendering:
            if not path.exists():
                self.simulators.call(environments.render_example, name, path)
        return path

    def measured(
        self, session: str, goal: str, frame: float, encoders: list[str], checkpoint: str
    ) -> dict[str, Any] | None:
        """The visitor's video as ``vip.clip`` draws it; None where there is none.

        Raises:
            Refused: the message is for the visitor.
        """
        visit = self.visits.of(session)
        place = visit.places.get("video")
        if place is None:
            return None
        settings = place.settings
        wish = Wish(place.folder, settings["source"], settings["name"])
        wish = wish._replace(encoders=self.chosen(encoders, checkpoint))
        if goal == FRAME:
            wish = wish._replace(goal=int(frame))
        elif goal == IMAGE:
            picture = visit.places.get("goal")
            if picture is None:
                raise Refused("Drop a picture of the finished task as the goal.")
            wish = wish._replace(
                goal=picture.settings["source"], goal_name=picture.settings["name"]
            )
        with place.lock:
            drawn = self.measurer.call(measuring.measure, wish)
            for file in place.folder.glob("curve.*"):
                file.unlink()  # of what was asked before
            settings["wish"] = wish
        return {**drawn, "at": self.address(visit.token, place), "stamp": time.monotonic_ns()}

    def chosen(self, encoders: list[str], checkpoint: str) -> tuple[str, ...]:
        """Names of encoders, checked: those that are offered, and a path where one may be given."""
        names = [name for name in self.encoders if name in encoders]
        if self.any_path and checkpoint and checkpoint.strip():
            path = Path(checkpoint.strip()).expanduser()
            if not path.exists():
                raise Refused(f"{path} is not there; wanted a checkpoint's folder, or its file.")
            names.append(str(path))
        if not names:
            raise Refused("Choose an encoder.")
        return tuple(names)

    @staticmethod
    def address(token: str, place: Place) -> str:
        """Where the files of a place are served."""
        return f"visit/{token}/{place.folder.name}"

    # -- several attempts ---------------------------------------------------------------------------

    def take_attempts(self, session: str, uploads: list[str]) -> None:
        """Videos to compare, in place of those before."""
        place = self.visits.place(session, "attempts")
        place.settings["attempts"] = [
            self._attempt(place, number, place.take(upload), Path(upload).name)
            for number, upload in enumerate(uploads[:ATTEMPTS])
        ]
        place.settings["left_out"] = len(uploads[ATTEMPTS:])

    def take_example_attempts(self, session: str) -> None:
        """Rendered attempts at one task."""
        names = [name for name in environments.EXAMPLES if name.startswith("drawer")]
        paths = [self.example(name) for name in names]
        place = self.visits.place(session, "attempts")
        place.settings["attempts"] = [
            self._attempt(place, number, path, path.name) for number, path in enumerate(paths)
        ]

    @staticmethod
    def _attempt(place: Place, number: int, source: Path, name: str) -> Attempt:
        folder = place.folder / f"attempt_{number}"
        folder.mkdir()
        return Attempt(folder, source, name)

    def compared(self, session: str, goal: str | None, encoder: str) -> dict[str, Any] | None:
        """The visitor's attempts as ``vip.attempts`` draws them; None where there are none."""
        visit = self.visits.of(session)
        place, picture = visit.places.get("attempts"), visit.places.get("attempts_goal")
        if place is None:
            return None
        attempts = place.settings["attempts"]
        if goal == IMAGE:
            if picture is None:
                raise Refused("Drop a picture of the finished task as the goal.")
            target, name = picture.settings["source"], picture.settings["name"]
        else:
            names = [attempt.name for attempt in attempts]
            target = names.index(goal) if goal in names else 0
            name = f"the end of {names[target]}"
        (encoder,) = self.chosen([encoder], "")
        with place.lock:
            drawn = self.measurer.call(compare, attempts, target, name, encoder, place.folder)
        at = self.address(visit.token, place)
        for one in drawn["attempts"]:
            one["last"] = f"{at}/{one['folder']}/{one['last']}"
        if left_out := place.settings.get("left_out"):
            drawn["refusals"].append(
                f"At most {ATTEMPTS} videos are compared; {left_out} left out."
            )
        return {**drawn, "goal": f"{at}/goal.jpg?{time.monotonic_ns()}"}

    # -- an environment -----------------------------------------------------------------------------

    def tasks(self) -> dict[str, list[str]]:
        """Of each installed suite."""
        if not self._tasks:
            self._tasks = self.simulators.call(environments.tasks)
        return self._tasks

    def play(
        self, session: str, suite: str, task: str, policy: str, encoder: str, seed: float
    ) -> Iterator[dict[str, Any]]:
        """An episode as ``vip.episode`` draws it, several times a second."""
        if task not in self.tasks().get(suite, ()) or policy not in environments.POLICIES:
            raise Refused("Choose a suite, a task and what steps it.")
        (encoder,) = self.chosen([encoder], "")
        visit = self.visits.of(session)
        visit.stop.set()  # an episode that is still running
        visit.stop = threading.Event()
        running = Episode(
            self.simulators, visit.stop, (suite, task, policy, encoder, int(seed or 0))
        )
        running.start()
        before = None
        while running.is_alive():
            if running.shown is not before:
                before = running.shown
                yield before
            time.sleep(0.08)
        if running.error is not None:
            raise running.error
        yield running.shown

    def stop(self, session: str) -> None:
        """End the visitor's episode."""
        self.visits.of(session).stop.set()


class Episode(threading.Thread):
    """Follows an episode of the simulators' process to its end, whether or not its visitor does.

    Attributes:
        shown: the latest picture of it.
        error: what ended it, if not its last step.
    """

    def __init__(self, simulators: Worker, stop: threading.Event, wanted: tuple):
        super().__init__(daemon=True)
        self.simulators, self.stopped, self.wanted = simulators, stop, wanted
        self.shown: dict[str, Any] = {"distance": [], "reward": [], "words": "Starting …"}
        self.error: Exception | None = None

    def run(self) -> None:
        goal = None
        try:
            for shown in self.simulators.stream(environments.episode, *self.wanted):
                goal = shown["goal"] or goal
                self.shown = {**shown, "goal": goal}
                if self.stopped.is_set():
                    self.shown["words"] += "; stopped"
                    return
        except Exception as error:
            self.error = error


# -- components -------------------------------------------------------------------------------------


def build(page: Page) -> gr.Blocks:
    """The page's components and events."""
    with gr.Blocks(title="VIP reward", analytics_enabled=False) as blocks:
        gr.HTML(HEAD, padding=False)
        with gr.Tabs():
            with gr.Tab("One video"):
                _one_video(page)
            with gr.Tab("Attempts"):
                _several_attempts(page)
            with gr.Tab("Environment"):
                _environment(page, blocks)

        def leave(request: gr.Request) -> None:
            page.visits.leave(str(request.session_hash))

        blocks.unload(leave)
    return blocks


QUEUE: dict[str, Any] = {
    "concurrency_limit": 4,
    "concurrency_id": "measure",
    "api_visibility": "private",
    "show_progress": "minimal",
}
"""Of events that measure: they wait for one process in turn, so that a few threads are enough."""


def _one_video(page: Page) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            upload = gr.File(label="Video", file_types=VIDEOS, height=150, elem_id="video")
            gr.Markdown(LIMITS, elem_classes="vip-note")
            example = gr.Dropdown(
                ["", *environments.EXAMPLES], value="", label="or an example, rendered here"
            )
            with gr.Accordion("or record with a webcam", open=False):
                webcam = gr.Video(
                    sources=["webcam"],
                    label="Webcam",
                    webcam_options=gr.WebcamOptions(mirror=False),
                    elem_id="webcam",
                )
            # else it has ffmpeg encode the recording again, to drop the sound that it does not have
            vars(webcam)["preprocess"] = lambda payload: payload and payload.path
            goal = gr.Radio([LAST, FRAME, IMAGE], value=LAST, label="Goal", elem_id="goal")
            frame = gr.Slider(
                0, 1, 0, step=1, label="Measured frame", visible=False, elem_id="frame"
            )
            picture = gr.File(
                label="Goal image",
                file_types=["image"],
                height=100,
                visible=False,
                elem_id="picture",
            )
            encoders, checkpoint = _encoders(page)
        with gr.Column(scale=3, min_width=320):
            view = _view("clip", "clip")
    asked = [goal, frame, encoders, checkpoint]
    outputs = [view, frame]

    def show(session: str, act: Callable[[], None], *asked: Any) -> tuple[Any, Any]:
        def both() -> Any:
            act()
            return page.measured(session, *asked)

        shown = _answer(both)
        if not shown or "refused" in shown:
            return shown, gr.skip()
        last = shown["frames"] - 1
        chosen = min(asked[1], last) if asked[0] == FRAME else last
        return shown, gr.Slider(maximum=last, value=chosen, visible=asked[0] == FRAME)

    def from_file(request: gr.Request, file: str | None, *asked: Any) -> tuple[Any, Any]:
        if not file:
            return gr.skip(), gr.skip()
        session = str(request.session_hash)
        return show(session, lambda: page.take_video(session, file), *asked)

    def from_example(request: gr.Request, name: str | None, *asked: Any) -> tuple[Any, Any]:
        if not name:
            return gr.skip(), gr.skip()
        session = str(request.session_hash)
        return show(session, lambda: page.take_example(session, name), *asked)

    def from_goal(request: gr.Request, file: str | None, *asked: Any) -> tuple[Any, Any]:
        session = str(request.session_hash)
        take = (lambda: page.take_goal(session, file)) if file else (lambda: None)
        return show(session, take, *asked)

    def again(request: gr.Request, *asked: Any) -> tuple[Any, Any]:
        return show(str(request.session_hash), lambda: None, *asked)

    def forget(request: gr.Request) -> None:
        page.visits.vacate(str(request.session_hash), "video")

    upload.upload(from_file, [upload, *asked], outputs, **QUEUE)
    upload.clear(forget, None, None, **QUEUE).then(lambda: None, None, view, **QUEUE)
    webcam.stop_recording(from_file, [webcam, *asked], outputs, **QUEUE)
    example.input(from_example, [example, *asked], outputs, **QUEUE)
    picture.upload(from_goal, [picture, *asked], outputs, **QUEUE)
    goal.input(
        lambda kind: (gr.Slider(visible=kind == FRAME), gr.File(visible=kind == IMAGE)),
        goal,
        [frame, picture],
        api_visibility="private",
        show_progress="hidden",
    ).then(again, asked, outputs, **QUEUE)
    gr.on(
        [frame.release, encoders.input, checkpoint.submit],
        again,
        asked,
        outputs,
        trigger_mode="always_last",
        **QUEUE,
    )


def _encoders(page: Page) -> tuple[gr.CheckboxGroup, gr.Textbox]:
    choices = [(name, key) for key, name in page.encoders.items()]
    encoders = gr.CheckboxGroup(choices, value=["bundled"], label="Encoders", elem_id="encoders")
    checkpoint = gr.Textbox(
        label="and your checkpoint",
        placeholder="its folder on this machine, then Enter",
        visible=page.any_path,
        elem_id="checkpoint",
    )
    return encoders, checkpoint


def _several_attempts(page: Page) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            uploads = gr.File(
                label="Videos of one task",
                file_types=VIDEOS,
                file_count="multiple",
                height=160,
                elem_id="attempts_videos",
            )
            gr.Markdown(f"Up to {ATTEMPTS}, of the same scene and camera.", elem_classes="vip-note")
            rendered = gr.Button("Rendered attempts at a drawer", size="sm")
            goal = gr.Dropdown(
                [IMAGE], value=None, label="Goal: the end of", elem_id="attempts_goal"
            )
            picture = gr.File(label="Goal image", file_types=["image"], height=100, visible=False)
            encoder = gr.Radio(
                [(name, key) for key, name in page.encoders.items()],
                value="bundled",
                label="Encoder",
            )
        with gr.Column(scale=3, min_width=320):
            view = _view("attempts", "attempts")
    asked = [goal, encoder]

    def take(session: str, act: Callable[[], None], encoder: str) -> tuple[Any, Any]:
        def both() -> Any:
            act()
            attempts = page.visits.of(session).places["attempts"].settings["attempts"]
            names = [attempt.name for attempt in attempts]
            return names, page.compared(session, names[0], encoder)

        answer = _answer(both)
        if isinstance(answer, dict):
            return answer, gr.skip()
        names, shown = answer
        return shown, gr.Dropdown(choices=[*names, IMAGE], value=names[0])

    def from_files(request: gr.Request, files: list[str] | None, encoder: str) -> tuple[Any, Any]:
        if not files:
            return gr.skip(), gr.skip()
        session = str(request.session_hash)
        return take(session, lambda: page.take_attempts(session, files), encoder)

    def from_examples(request: gr.Request, encoder: str) -> tuple[Any, Any]:
        session = str(request.session_hash)
        return take(session, lambda: page.take_example_attempts(session), encoder)

    def again(request: gr.Request, goal: str, encoder: str) -> Any:
        return _answer(lambda: page.compared(str(request.session_hash), goal, encoder))

    def from_goal(request: gr.Request, file: str | None, *asked: Any) -> Any:
        if file:
            page.take_goal(str(request.session_hash), file, "attempts_goal")
        return again(request, *asked)

    uploads.upload(from_files, [uploads, encoder], [view, goal], **QUEUE)
    rendered.click(from_examples, encoder, [view, goal], **QUEUE)
    goal.input(
        lambda goal: gr.File(visible=goal == IMAGE),
        goal,
        picture,
        api_visibility="private",
        show_progress="hidden",
    ).then(again, asked, view, **QUEUE)
    encoder.input(again, asked, view, **QUEUE)
    picture.upload(from_goal, [picture, *asked], view, **QUEUE)


def _environment(page: Page, blocks: gr.Blocks) -> None:
    suites = environments.installed()
    if not suites:
        gr.Markdown('No simulator is installed: `pip install "torchrl-vip[metaworld]"`.')
        return
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            suite = gr.Dropdown(suites, value=suites[0], label="Suite", elem_id="suite")
            task = gr.Dropdown([], label="Task", elem_id="task")
            policy = gr.Radio(
                [(name, key) for key, name in environments.POLICIES.items()],
                value="script",
                label="Stepped by",
                elem_id="policy",
            )
            encoder = gr.Radio(
                [(name, key) for key, name in page.encoders.items()],
                value="bundled",
                label="Encoder",
            )
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**20)
            with gr.Row():
                start = gr.Button("Start", variant="primary", min_width=80, elem_id="start")
                stop = gr.Button("Stop", min_width=80, elem_id="stop")
        with gr.Column(scale=3, min_width=320):
            view = _view("episode", "episode")

    def of_suite(suite: str) -> Any:
        tasks = page.tasks()[suite]
        first = "drawer-open-v3" if "drawer-open-v3" in tasks else tasks[0]
        return gr.Dropdown(choices=tasks, value=first)

    def play(request: gr.Request, *wanted: Any) -> Iterator[Any]:
        shown = page.play(str(request.session_hash), *wanted)
        while (answer := _answer(lambda: next(shown, None))) is not None:
            yield answer
            if "refused" in answer:
                return

    def end(request: gr.Request) -> None:
        page.stop(str(request.session_hash))

    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    blocks.load(of_suite, suite, task, **quiet)
    suite.input(of_suite, suite, task, **quiet)
    start.click(
        play,
        [suite, task, policy, encoder, seed],
        view,
        concurrency_limit=4,
        concurrency_id="episode",
        api_visibility="private",
        show_progress="hidden",
    )
    stop.click(end, None, None, queue=False, **quiet)


def _view(draw: str, name: str) -> gr.HTML:
    """A component that page.js draws."""
    return gr.HTML(
        value=None,
        html_template='<div class="vip-mount"></div>',
        js_on_load=f"vip.mount(vip.{draw}, element, props, watch);",
        elem_id=name,
        padding=False,
    )


def _answer(act: Callable[[], Any]) -> Any:
    """What ``act`` gives, or its refusal in words: no upload and no crash stops the page."""
    try:
        return act()
    except Refused as error:
        return {"refused": str(error)}
    except WorkerError as error:
        return {"refused": f"This could not be done: {error}. The page goes on; try another file."}
    except FileNotFoundError:
        return {"refused": "This upload is gone; drop the file again."}
    except Exception as error:
        print(f"page: {type(error).__name__}: {error}", flush=True)
        return {"refused": f"This could not be done ({type(error).__name__}: {error})."}
