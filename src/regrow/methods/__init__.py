"""One file for each method; importing this package registers them all."""

from regrow.methods.acdc import ACDC
from regrow.methods.dense import Dense
from regrow.methods.gmp import GMP
from regrow.methods.granet import GraNet
from regrow.methods.halp import HALP
from regrow.methods.iee import IEE
from regrow.methods.method import METHODS, Method
from regrow.methods.oneshot import OneShot
from regrow.methods.rigl import RigL
from regrow.methods.set import SET
from regrow.methods.srste import SRSTE
from regrow.methods.static import Static
from regrow.methods.ste import STE
from regrow.methods.uniform import Uniform

__all__ = [
    "ACDC", "GMP", "HALP", "IEE", "METHODS", "SET", "SRSTE", "STE", "Dense", "GraNet", "Method", "OneShot", "RigL",
    "Static", "Uniform",
]  # fmt: skip
