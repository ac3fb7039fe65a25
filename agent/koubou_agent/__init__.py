"""koubou-agent: sits beside one Ollama and runs gemini-repo-cli for every task."""
