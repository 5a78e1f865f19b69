"""The engine: many branches from one prefill, in a supervised child process."""
