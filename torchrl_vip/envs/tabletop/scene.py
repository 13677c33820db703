"""The MJCF of a tabletop task: the arm, the table, and the one thing that the task is about.

The Franka is that of gymnasium-robotics' kitchen, read from the installed package: vikashplus/franka,
Apache-2.0. All else is of primitives and of :mod:`torchrl_vip.envs.tabletop.shapes`. Lengths in metres; x
points from the robot's base over the table, z up, and the table's top is z = 0.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from torchrl_vip.envs.simulator import mujoco
from torchrl_vip.envs.tabletop.shapes import (
    half_disc,
    lathe,
    melon_picture,
    png,
    towel_picture,
)

TIMESTEP = 0.002  # s
ARM = tuple(f"robot:panda0_joint{i}" for i in range(1, 8))
FINGERS = tuple(f"robot:panda0_finger_joint{i}" for i in (1, 2))
HAND = "panda0_link7"
PADS = ("left_pad", "right_pad")
PINCH = "pinch"  # the site between the fingers' tips
FINGER_RANGE = 0.04  # m, of one finger
_STIFFNESS = (4500.0, 4500.0, 3500.0, 3500.0, 2000.0, 2000.0, 2000.0)  # N m / rad
_DAMPING = (180.0, 180.0, 120.0, 120.0, 40.0, 40.0, 40.0)
_TORQUE = (87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0)  # N m: the real arm's limits
_HAND_TURN = (0.92388, 0.0, 0.0, -0.382683)  # quaternion: of the hand to the flange
_GRIP = 4.0  # N, of one finger: gentle, as soft things are held

DRAWER_TRAVEL = 0.2
ZONE, ZONE_RADIUS = (0.62, -0.12), 0.05
TOWEL_SIDE, TOWEL_COUNT, TOWEL_RADIUS = 0.22, 11, 0.004
MELON_RADIUS, MELON_THICKNESS = 0.065, 0.042


def _franka() -> Path:
    spec = importlib.util.find_spec("gymnasium_robotics")
    if spec is None or not spec.origin:
        raise ImportError(
            'gymnasium-robotics, whose Franka this is, is not installed: pip install "torchrl-vip[robotics]"'
        )
    return Path(spec.origin).parent / "envs" / "assets" / "kitchen_franka" / "franka_assets"


_DRAWER = f"""
<body name="cabinet" mocap="true">
  <geom class="wood" size=".13 .005 .1" pos="0 -.135 .1"/>
  <geom class="wood" size=".13 .005 .1" pos="0 .135 .1"/>
  <geom class="wood" size=".13 .14 .005" pos="0 0 .005"/>
  <geom class="wood" size=".13 .14 .005" pos="0 0 .195"/>
  <geom class="wood" size=".005 .14 .1" pos="-.125 0 .1"/>
  <body name="drawer" pos="0 0 .1">
    <joint name="drawer" type="slide" axis="1 0 0" range="0 {DRAWER_TRAVEL}" damping="8"
      frictionloss="1.5" armature=".2"/>
    <geom class="wood" name="drawer_front" size=".007 .138 .088" pos=".139 0 0" mass=".5"/>
    <geom class="wood" size=".115 .004 .06" pos=".012 -.115 -.01" mass=".15"/>
    <geom class="wood" size=".115 .004 .06" pos=".012 .115 -.01" mass=".15"/>
    <geom class="wood" size=".115 .115 .003" pos=".012 0 -.07" mass=".3"/>
    <geom class="wood" size=".004 .115 .06" pos="-.1 0 -.01" mass=".15"/>
    <geom class="metal" type="capsule" size=".006" fromto=".17 -.05 -.045 .17 .05 -.045"/>
    <geom class="metal" type="capsule" size=".005" fromto=".146 -.05 -.045 .17 -.05 -.045"/>
    <geom class="metal" type="capsule" size=".005" fromto=".146 .05 -.045 .17 .05 -.045"/>
    <site name="front" pos=".146 0 .045" group="4"/>
  </body>
</body>"""

_BOTTLE = f"""
<body name="zone" pos="{ZONE[0]} {ZONE[1]} 0">
  <geom type="cylinder" size="{ZONE_RADIUS} .0004" pos="0 0 .0004" material="zone" contype="0"
    conaffinity="0"/>
</body>
<body name="bottle" pos="{ZONE[0]} {ZONE[1]} 0">
  <freejoint name="bottle"/>
  <geom name="bottle_body" type="cylinder" size=".031 .055" pos="0 0 .055" mass=".25" group="3"
    friction=".22 .005 .0001" priority="1"/>
  <geom type="capsule" size=".013" fromto="0 0 .11 0 0 .148" mass=".015" group="3"/>
  <geom class="seen" mesh="water" material="water"/>
  <geom class="seen" mesh="bottle" material="plastic"/>
  <geom class="seen" mesh="cap" material="cap"/>
</body>"""


def _bottle_assets() -> str:
    """A bottle of a third of a litre, with ribs, two thirds full."""
    ribs = [(0.031 - 0.0018 * (i % 2), 0.012 + 0.0115 * i) for i in range(8)]  # up to z = 0.0925
    shoulder = [(0.031, 0.101), (0.029, 0.114), (0.021, 0.128), (0.0125, 0.139), (0.0115, 0.145)]
    return "".join(
        (
            lathe("bottle", [(0.023, 0.0005), (0.0298, 0.006), *ribs, *shoulder]),
            lathe("water", [(0.022, 0.002), (0.0275, 0.008), (0.028, 0.085)]),
            lathe("cap", [(0.0140, 0.143), (0.0145, 0.145), (0.0140, 0.160), (0.0125, 0.162)]),
            '<material name="plastic" rgba=".8 .88 .95 .28" specular="1" shininess=".9"/>',
            '<material name="water" rgba=".55 .75 .9 .3" specular=".5" shininess=".6"/>',
            '<material name="cap" rgba=".97 .97 .98 1" specular=".4" shininess=".5"/>',
            '<material name="zone" rgba=".55 .65 .72 1"/>',
        )
    )


def _melon() -> str:
    points, tetrahedra, picture = half_disc(MELON_RADIUS, MELON_THICKNESS, (3, 7, 4))
    walls = []
    for angle in 2 * np.pi * np.arange(16) / 16:
        x, y = 0.079 * np.cos(angle), 0.079 * np.sin(angle)
        walls.append(
            f'<geom type="box" size=".004 .0165 .019" pos="{x:.4f} {y:.4f} .018" '
            f'quat="{_tilted(angle)}" group="3"/>'
        )
    return f"""
<body name="bowl" mocap="true">
  <geom class="seen" mesh="bowl" material="bowl"/>
  <geom type="cylinder" size=".07 .003" pos="0 0 .003" group="3"/>
  {"".join(walls)}
</body>
<flexcomp name="melon" type="direct" dim="3" radius=".003" mass=".12" material="melon" pos=".5 -.2 .005"
  point="{_text(points)}" element="{_text(tetrahedra)}" texcoord="{_text(picture)}">
  <edge equality="true" solref=".008 1"/>
  <contact selfcollide="none" internal="false" condim="3" friction="1.2 .01 .001" solref=".004 1"
    solimp=".95 .99 .002"/>
</flexcomp>"""


def _tilted(angle: float, lean: float = 0.8) -> str:
    """Quaternion: leaning outwards by ``lean``, then turned by ``angle`` about z."""
    turn, tilt = np.empty(4), np.empty(4)
    mujoco.mju_axisAngle2Quat(turn, np.array([0.0, 0.0, 1.0]), angle)
    mujoco.mju_axisAngle2Quat(tilt, np.array([0.0, 1.0, 0.0]), lean)
    mujoco.mju_mulQuat(both := np.empty(4), turn, tilt)
    return _text(both)


def _melon_assets() -> str:
    bowl = [(0.06, 0.0), (0.072, 0.006), (0.086, 0.018), (0.095, 0.035), (0.092, 0.036)]
    inside = [(0.082, 0.020), (0.068, 0.009), (0.01, 0.0065)]
    return (
        lathe("bowl", [*bowl, *inside])
        + '<texture name="melon" type="2d" file="melon.png"/>'
        + '<material name="melon" texture="melon" specular=".1"/>'
        + '<material name="bowl" rgba=".62 .7 .58 1" specular=".3" shininess=".4"/>'
    )


_TOWEL = f"""
<flexcomp name="towel" type="grid" dim="2" count="{TOWEL_COUNT} {TOWEL_COUNT} 1"
  spacing="{TOWEL_SIDE / (TOWEL_COUNT - 1)} {TOWEL_SIDE / (TOWEL_COUNT - 1)} .01" pos=".5 -.2 {TOWEL_RADIUS}"
  radius="{TOWEL_RADIUS}" mass=".05" material="towel">
  <edge equality="true" damping=".01"/>
  <contact selfcollide="auto" condim="3" friction=".8 .005 .0001"/>
</flexcomp>"""

_TOWEL_ASSETS = (
    '<texture name="towel" type="2d" file="towel.png"/>'
    '<material name="towel" texture="towel" specular="0"/>'
)


def _things(task: str) -> tuple[str, str, str]:
    """Assets, bodies and the name of the soft one of them."""
    if task == "close-drawer":
        return "", _DRAWER, ""
    if task == "push-bottle":
        return _bottle_assets(), _BOTTLE, ""
    if task == "pickplace-melon":
        return _melon_assets(), _melon(), "melon"
    return _TOWEL_ASSETS, _TOWEL, "towel"


def _scene(assets: str, bodies: str) -> str:
    franka = _franka()
    # The Franka's own defaults go by its class, so that those of the things are classes too.
    return f"""<mujoco model="tabletop">
<include file="{franka / "assets.xml"}"/>
<compiler angle="radian" meshdir="{franka / "meshes"}"/>
<option timestep="{TIMESTEP}" integrator="implicitfast" solver="CG" iterations="100" tolerance="1e-8"/>
<size memory="64M"/>
<statistic center=".4 0 .2" extent="1.2"/>
<visual><headlight ambient=".42 .42 .42" diffuse=".28 .28 .28" specular=".1 .1 .1"/>
  <map znear=".05" zfar="30"/></visual>
<default>
  <default class="wood"><geom type="box" material="wood" contype="1" conaffinity="3"/></default>
  <default class="metal"><geom material="metal" contype="1" conaffinity="3" mass=".02"/></default>
  <default class="seen"><geom type="mesh" contype="0" conaffinity="0" mass="0"/></default>
</default>
<asset>
  <texture name="table" type="2d" builtin="flat" mark="random" rgb1=".84 .84 .82" markrgb=".8 .8 .78"
    random=".02" width="256" height="256"/>
  <texture name="wall" type="2d" builtin="flat" rgb1=".86 .87 .87" width="64" height="64"/>
  <texture name="sky" type="skybox" builtin="flat" rgb1=".62 .64 .65" rgb2=".62 .64 .65" width="64"
    height="64"/>
  <material name="table" texture="table" specular=".1"/>
  <material name="wall" texture="wall" specular="0"/>
  <material name="rail" rgba=".06 .2 .22 1" specular=".3"/>
  <material name="wood" rgba=".93 .93 .91 1" specular=".2"/>
  <material name="metal" rgba=".6 .58 .55 1" specular=".8" shininess=".8"/>
  {assets}
</asset>
<worldbody>
  <light pos=".9 .4 2" dir="-.3 -.2 -1" diffuse=".5 .5 .48" directional="true" castshadow="true"/>
  <light pos=".2 -1 1.6" dir="0 .5 -1" diffuse=".15 .15 .16" castshadow="false"/>
  <geom name="table" type="plane" size=".65 .8 .02" pos=".75 -.1 0" material="table" friction="1 .005 .0001"/>
  <geom name="rail" type="box" size=".12 .8 .02" pos="-.02 -.1 -.02" material="rail" contype="0"
    conaffinity="0"/>
  <geom type="box" size=".02 2 1" pos="-.75 -.3 .5" material="wall" contype="0" conaffinity="0"/>
  <geom type="box" size="2 .02 1" pos=".3 -1.2 .5" material="wall" contype="0" conaffinity="0"/>
  <geom type="plane" size="4 4 .1" pos="0 0 -.5" material="wall" contype="0" conaffinity="0"/>
  <include file="{franka / "chain.xml"}"/>
  {bodies}
</worldbody>
</mujoco>"""


def _text(numbers: np.ndarray) -> str:
    return " ".join(f"{n:.6g}" for n in np.ravel(numbers))


def _fit_arm(spec: mujoco.MjSpec) -> None:
    """Position control near the real arm's stiffness, no weight (it balances its own), padded fingers."""
    for body in spec.bodies:
        if not body.name.startswith("panda0_"):
            continue
        body.gravcomp = 1.0
        for geom in body.geoms:
            finger = body.name.endswith("finger")
            solid = geom.contype and not finger  # pads are what the fingers touch with
            # the arm touches things, not itself
            geom.contype, geom.conaffinity = (2, 1) if solid else (0, 0)
            if geom.meshname in ("hand_viz", "finger_viz"):
                geom.rgba = (0.13, 0.13, 0.15, 1.0)
            elif geom.meshname.endswith("_viz"):
                geom.rgba = (0.93, 0.94, 0.96, 1.0)
    for site in spec.sites:
        if site.name == "end_effector":
            site.rgba = (0.0, 0.0, 0.0, 0.0)
    for name, kp, kv, most in zip(ARM, _STIFFNESS, _DAMPING, _TORQUE, strict=True):
        _drive(spec, name, kp, kv, most, damping=1.0, armature=0.1)
    for name in FINGERS:
        _drive(spec, name, 2500.0, 60.0, _GRIP, damping=5.0, armature=0.2)
    spec.body(HAND).add_site(name=PINCH, pos=(0.0, 0.0, 0.1654 + 0.085), quat=_HAND_TURN, group=4)
    for finger, pad, side in (("left", PADS[0], 1), ("right", PADS[1], -1)):
        body = spec.body(f"panda0_{finger}finger")
        solid = {"contype": 2, "conaffinity": 1, "mass": 0.0, "type": mujoco.mjtGeom.mjGEOM_BOX}
        body.add_geom(
            name=pad,
            pos=(0.0, side * 0.0075, 0.077),
            size=(0.011, 0.0075, 0.017),
            friction=(1.2, 0.01, 0.001),
            rgba=(0.1, 0.25, 0.6, 1.0),
            condim=3,  # with torsion, MuJoCo 3.3.0 blows up where boxes press into a solid flex
            **solid,
        )
        body.add_geom(pos=(0.0, side * 0.016, 0.03), size=(0.011, 0.01, 0.03), group=3, **solid)


def _drive(
    spec: mujoco.MjSpec,
    name: str,
    kp: float,
    kv: float,
    most: float,
    damping: float,
    armature: float,
) -> None:
    joint = next(joint for joint in spec.joints if joint.name == name)
    joint.damping, joint.armature = damping, armature
    spec.add_actuator(
        name=name,
        target=name,
        trntype=mujoco.mjtTrn.mjTRN_JOINT,
        gaintype=mujoco.mjtGain.mjGAIN_FIXED,
        gainprm=[kp] + [0.0] * 9,
        biastype=mujoco.mjtBias.mjBIAS_AFFINE,
        biasprm=[0.0, -kp, -kv] + [0.0] * 7,
        forcelimited=True,
        forcerange=(-most, most),
    )


def build_arm() -> mujoco.MjModel:
    """The arm alone, for its kinematics."""
    spec = mujoco.MjSpec.from_string(_scene("", ""))
    _fit_arm(spec)
    return spec.compile()


def build(task: str) -> tuple[mujoco.MjModel, list[int]]:
    """A task's model, and the equality constraints by which the hand can hold: one for each vertex of the
    soft thing, in their order.

    Raises:
        ImportError: gymnasium-robotics is not installed.
    """
    assets, bodies, soft = _things(task)
    pictures = {"melon.png": png(melon_picture()), "towel.png": png(towel_picture())}
    spec = mujoco.MjSpec.from_string(_scene(assets, bodies), assets=pictures)
    _fit_arm(spec)
    vertices = [body.name for body in spec.bodies if soft and body.name.startswith(f"{soft}_")]
    for vertex in vertices:
        spec.add_equality(
            name=f"hold_{vertex}",
            type=mujoco.mjtEq.mjEQ_CONNECT,
            objtype=mujoco.mjtObj.mjOBJ_BODY,
            name1=HAND,
            name2=vertex,
            active=False,
            solref=(0.01, 1.0),
        )
    model = spec.compile()
    return model, [model.equality(f"hold_{vertex}").id for vertex in vertices]
