"""A stand-in for the gemini-repo-cli program, for where the real one cannot be installed.

This folder on the module search path makes `gemini_repo` importable: same arguments, prompt layout, exit
codes, side effects and imports as the real one, written by us. `koubou-agent setup-cli --from stand-in`
makes an environment of it.
"""
