"""python setup.py build_ext --inplace: needs cylstm, Cython, setuptools and a C compiler."""

from Cython.Build import cythonize
from setuptools import setup

setup(ext_modules=cythonize("frames.pyx", language_level=3))
