"""Jobs in containers: what DockerContext and PodmanContext share."""
