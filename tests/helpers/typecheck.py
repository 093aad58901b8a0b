"""The runtime type checker of the tests: beartype, with ints accepted where floats are (PEP 484's numeric tower)."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
