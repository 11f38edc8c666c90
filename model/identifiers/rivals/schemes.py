"""All rivals, in the order of the tables."""

from model.identifiers.rivals.atomic import Atomic
from model.identifiers.rivals.decoupled import Decoupled
from model.identifiers.rivals.hierarchy import Hierarchy
from model.identifiers.rivals.keywords import Keywords
from model.identifiers.rivals.numeric import Numeric
from model.identifiers.rivals.random_string import RandomString
from model.identifiers.rivals.residual import Residual
from model.identifiers.rivals.scheme import Scheme
from model.identifiers.rivals.semantic import Semantic
from model.identifiers.rivals.several import Several
from model.identifiers.rivals.visual_tokens import TokenToToken

SCHEMES: tuple[Scheme, ...] = (
    Numeric(),
    RandomString(),
    Semantic(),
    Hierarchy(),
    Atomic(),
    Residual(),
    TokenToToken(),
    Keywords(),
    Decoupled(),
    Several(),
)
