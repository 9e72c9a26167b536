"""The service: events come in one by one, recommendations go out (``hyenarec serve``)."""
