"""How a MuJoCo scene looks: its shipped colours, lights and textures, and random ones in their place.

Nothing here touches the physics.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import mujoco
import numpy as np


@dataclass(frozen=True)
class Randomization:
    """What one draw of a scene's looks may change. Angles in degrees, lengths in metres."""

    lookat: tuple[float, float, float]  # the workspace's centre
    azimuth: tuple[float, float]
    elevation: tuple[float, float]
    distance: tuple[float, float]  # camera to the point it looks at
    target_jitter: float = 0.08  # around lookat
    fovy: tuple[float, float] = (42.0, 55.0)
    colour: float = 1.0  # 0 keeps the colours, 1 replaces them
    light: float = 1.0  # 0 keeps the lights
    texture: float = 0.7  # probability that a surface gets a new texture
    distractors: int = 0  # at most so many things lie about that nobody touches

    def mild(
        self,
        azimuth: tuple[float, float],
        elevation: tuple[float, float],
        distance: tuple[float, float],
    ) -> Randomization:
        """Near one view, with tinted colours: another laboratory, not another world."""
        return replace(
            self,
            azimuth=azimuth,
            elevation=elevation,
            distance=distance,
            target_jitter=self.target_jitter / 2,
            fovy=(42.0, 50.0),
            colour=0.4,
            light=0.5,
            texture=0.3,
            distractors=0,
        )


@dataclass(frozen=True)
class Distractor:
    """A thing that is drawn and takes no part in the physics."""

    kind: int  # mujoco.mjtGeom
    size: np.ndarray  # [3], m
    position: np.ndarray  # [3], m
    rotation: np.ndarray  # [9]
    rgba: np.ndarray  # [4]

    def add_to(self, scene: mujoco.MjvScene) -> None:
        if scene.ngeom < scene.maxgeom:
            geom = scene.geoms[scene.ngeom]
            mujoco.mjv_initGeom(geom, self.kind, self.size, self.position, self.rotation, self.rgba)
            scene.ngeom += 1


class Looks:
    """The looks of one model, as shipped and as drawn.

    Args:
        model: changed in place.
        surfaces: names of textures that may be repainted; the sky always may.
    """

    def __init__(self, model: mujoco.MjModel, surfaces: tuple[str, ...] = ()) -> None:
        self.model, self.surfaces = model, surfaces
        names = ("mat_rgba", "geom_rgba", "light_pos", "light_dir", "light_diffuse", "tex_data")
        self.shipped = {name: np.copy(getattr(model, name)) for name in names}
        self.view = (model.vis.global_.fovy, np.copy(model.vis.headlight.diffuse))
        self.repainted: set[int] = set()

    def restore(self) -> set[int]:
        """Back to the shipped looks; returns the textures to upload to the renderer."""
        model = self.model
        for name, value in self.shipped.items():
            getattr(model, name)[:] = value
        model.vis.global_.fovy, model.vis.headlight.diffuse[:] = self.view
        repainted, self.repainted = self.repainted, set()
        return repainted

    def draw(
        self, r: Randomization, seed: int
    ) -> tuple[mujoco.MjvCamera, list[Distractor], set[int]]:
        """New looks, always starting from the shipped ones.

        Returns:
            the camera, the distractors, and the textures to upload to the renderer.
        """
        changed = self.restore()
        rng, model = np.random.default_rng(seed), self.model
        camera = mujoco.MjvCamera()
        camera.type = mujoco.mjtCamera.mjCAMERA_FREE
        camera.azimuth = rng.uniform(*r.azimuth)
        camera.elevation = rng.uniform(*r.elevation)
        camera.distance = rng.uniform(*r.distance)
        jitter = rng.uniform(-r.target_jitter, r.target_jitter, 3)
        camera.lookat[:] = np.array(r.lookat) + jitter
        model.vis.global_.fovy = rng.uniform(*r.fovy)
        self._recolour(rng, r.colour)
        self._relight(rng, r.light)
        self._repaint(rng, r.texture)
        count = rng.integers(r.distractors + 1)
        things = [_distractor(rng, np.array(r.lookat)) for _ in range(count)]
        return camera, things, changed | self.repainted

    def _recolour(self, rng: np.random.Generator, strength: float) -> None:
        model = self.model
        for material in range(model.nmat):  # a textured one is multiplied: keep it light
            darkest = 0.45 if (model.mat_texid[material] >= 0).any() else 0.05
            colour = rng.uniform(darkest, 1.0, 3)
            model.mat_rgba[material, :3] += strength * (colour - model.mat_rgba[material, :3])
        # geoms that share a colour are one part (the arm, the gripper, an object): keep them so
        for old in np.unique(self.shipped["geom_rgba"][:, :3], axis=0):
            colour = old + strength * (rng.uniform(0.05, 1.0, 3) - old)
            same = (self.shipped["geom_rgba"][:, :3] == old).all(1)
            if not np.allclose(old, 0.5):  # 0.5 means "take the material's"
                model.geom_rgba[same, :3] = colour

    def _relight(self, rng: np.random.Generator, strength: float) -> None:
        model = self.model
        shift = rng.normal(0.0, 0.5 * strength, (model.nlight, 3))
        model.light_pos[:] += shift
        model.light_dir[:] -= shift * [1, 1, 0]
        model.light_dir[:] /= np.linalg.norm(model.light_dir, axis=1, keepdims=True)
        model.light_diffuse[:] *= 1 + strength * rng.uniform(-0.7, 0.7, (model.nlight, 1))
        model.light_diffuse[:] *= 1 + strength * rng.uniform(-0.15, 0.15, (model.nlight, 3))
        model.vis.headlight.diffuse[:] *= 1 + strength * rng.uniform(-0.6, 0.4)

    def _repaint(self, rng: np.random.Generator, probability: float) -> None:
        model = self.model
        for texture in range(model.ntex):
            draw, pattern_rng = rng.uniform(), np.random.default_rng(rng.integers(2**31))
            sky = model.tex_type[texture] == mujoco.mjtTexture.mjTEXTURE_SKYBOX
            if draw > probability or not (sky or model.tex(texture).name in self.surfaces):
                continue
            height, width = model.tex_height[texture], model.tex_width[texture]
            channels, start = model.tex_nchannel[texture], model.tex_adr[texture]
            image = _pattern(pattern_rng, height, width)[..., :channels]
            model.tex_data[start : start + image.size] = image.ravel()
            self.repainted.add(texture)


def _distractor(rng: np.random.Generator, centre: np.ndarray) -> Distractor:
    """A box, ball or cylinder of 2 to 8 cm, 25 to 60 cm beside the workspace's centre."""
    shape = mujoco.mjtGeom
    kind = rng.choice([shape.mjGEOM_BOX, shape.mjGEOM_SPHERE, shape.mjGEOM_CYLINDER])
    angle, radius = rng.uniform(0, 2 * np.pi), rng.uniform(0.25, 0.6)
    offset = np.array([radius * np.cos(angle), radius * np.sin(angle), rng.uniform(-0.12, 0.05)])
    turn = rng.uniform(0, 2 * np.pi)
    cos, sin = np.cos(turn), np.sin(turn)
    return Distractor(
        int(kind),
        rng.uniform(0.02, 0.08, 3),
        centre + offset,
        np.array([cos, -sin, 0, sin, cos, 0, 0, 0, 1]),
        np.append(rng.uniform(0.05, 1, 3), 1.0).astype(np.float32),
    )


def _pattern(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Blocks, stripes or speckle between two colours, uint8 [height, width, 3]."""
    low, high = rng.uniform(40, 255, (2, 3))
    cells = int(rng.choice([4, 8, 16, 64]))
    grid = rng.uniform(0, 1, (cells, cells)) ** rng.uniform(0.5, 2)
    kind = rng.choice(["speckle", "stripes", "checker", "plain"])
    if kind == "stripes":
        grid = np.broadcast_to(grid[:1], grid.shape)
    elif kind == "checker":
        grid = np.indices(grid.shape).sum(0) % 2
    elif kind == "plain":
        grid = 0.1 * grid
    rows, columns = np.arange(height) * cells // height, np.arange(width) * cells // width
    blend = grid[rows][:, columns, None]
    return (low + blend * (high - low)).astype(np.uint8)
