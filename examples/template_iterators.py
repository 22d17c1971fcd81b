"""Template iterators: a template that is another one at each submission, here by two counted variables and a map."""

from wfl import JobTemplate, Template, Workflow, env_sequence, shell


def loudly(template: JobTemplate) -> JobTemplate:
    """A map: what is submitted once, differently."""
    return template.replace(args=["-c", 'echo "RUN $RUN, RATE $RATE"'])


template = (
    Template(shell('echo "run $RUN, rate $RATE"'))
    .add_iterator("run", env_sequence("RUN", 1))
    .add_iterator("rate", env_sequence("RATE", 0.5, 0.25))
    .add_map("loudly", loudly)
)

with Workflow() as flow:
    job = flow.run(template.next()).run(template.next()).run(template.next_map("loudly")).run(template.next())
    for output in job.outputs().values():
        print(output)
