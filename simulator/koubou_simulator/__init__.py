"""Everything simulated, labelled as such: Ollama, the stand-in CLI, the demo."""
