"""Speed, side by side with the peers; tests hold no stopwatch."""
