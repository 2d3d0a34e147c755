"""One file for each method; importing this package registers them all."""

from regrow.methods.base import METHODS, Method
from regrow.methods.dense import Dense
from regrow.methods.gmp import GMP
from regrow.methods.halp import HALP
from regrow.methods.iee import IEE
from regrow.methods.oneshot import OneShot
from regrow.methods.rigl import RigL
from regrow.methods.set import SET
from regrow.methods.static import Static
from regrow.methods.uniform import Uniform

__all__ = ["GMP", "HALP", "IEE", "METHODS", "SET", "Dense", "Method", "OneShot", "RigL", "Static", "Uniform"]
