"""One file for each method; importing this package registers them all."""

from regrow.methods.acdc import ACDC
from regrow.methods.chase import Chase
from regrow.methods.dense import Dense
from regrow.methods.dsr import DSR
from regrow.methods.gap import GaP
from regrow.methods.gmp import GMP
from regrow.methods.granet import GraNet
from regrow.methods.halp import HALP
from regrow.methods.iee import IEE
from regrow.methods.mest import MEST
from regrow.methods.method import METHODS, Method
from regrow.methods.oneshot import OneShot
from regrow.methods.rigl import RigL
from regrow.methods.set import SET
from regrow.methods.snfs import SNFS
from regrow.methods.srste import SRSTE
from regrow.methods.static import Static
from regrow.methods.ste import STE
from regrow.methods.uniform import Uniform

__all__ = [
    "ACDC", "DSR", "GMP", "HALP", "IEE", "MEST", "METHODS", "SET", "SNFS", "SRSTE", "STE", "Chase", "Dense", "GaP",
    "GraNet", "Method", "OneShot", "RigL", "Static", "Uniform",
]  # fmt: skip
