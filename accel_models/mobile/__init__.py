"""Mobile processors."""
