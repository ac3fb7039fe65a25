"""Power cuts: what real processes did to their files, played back to any instant, and asked what they promised."""
