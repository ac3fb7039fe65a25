"""koubou-broker: accepts tasks, keeps them safely, decides who works on what."""
