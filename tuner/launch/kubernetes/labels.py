"""Labels and annotations that identify a study's objects."""

STUDY_LABEL = "tuner/study"
ROLE_LABEL = "tuner/role"
STUDY_ANNOTATION = "tuner/study-name"
CONTENT_ANNOTATION = "tuner/content"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
# KubeRay's, on all that it makes for a RayJob.
ORIGIN_LABEL = "ray.io/originated-from-cr-name"
