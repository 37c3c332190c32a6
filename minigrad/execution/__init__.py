"""When something is computed: on demand, op by op, or as a recorded step that is replayed."""
