"""The stages: each opens its folder, does its part through the modules that know how, and leaves files and figures.

A stage is a function of the files before it. Gates are checked where their evidence arises; a gate that fails raises
GateError unless the recipe overrides it, and either way the report tells.
"""
