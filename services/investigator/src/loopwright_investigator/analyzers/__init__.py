"""One question each, asked of the ports: a module has one public function that returns its findings and leaves observations behind."""
