"""An executor for tests: jobs as a cluster has them, by a Snakemake of their own, beside this one.

A job finds the plan of the run as far as Snakemake passes it on. BEFORE_JOBS is a line of shell
that runs before each: what happens on the node while jobs queue.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncGenerator

from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface
from snakemake_interface_executor_plugins.settings import CommonSettings

common_settings = CommonSettings(
    non_local_exec=True,
    implies_no_shared_fs=False,
    job_deploy_sources=False,
    pass_default_storage_provider_args=True,
    pass_default_resources_args=True,
    pass_envvar_declarations_to_cmd=True,
    auto_deploy_default_storage_provider=False,
    init_seconds_before_status_checks=0,
)


class Executor(RemoteExecutor):
    def run_job(self, job: JobExecutorInterface) -> None:
        """Start the job's Snakemake."""
        line = self.format_job_exec(job)
        kept = {name: value for name, value in os.environ.items() if name != "LTPIPE_PLAN"}
        before = kept.pop("BEFORE_JOBS", ":")
        process = subprocess.Popen(["bash", "-c", f"{before}; {line}"], env=kept)
        info = SubmittedJobInfo(job, external_jobid=str(process.pid), aux={"process": process})
        self.report_job_submission(info)

    async def check_active_jobs(
        self, active_jobs: list[SubmittedJobInfo]
    ) -> AsyncGenerator[SubmittedJobInfo, None]:
        """Yield the jobs that are still at work."""
        for info in active_jobs:
            status = info.aux["process"].poll()
            if status is None:
                yield info
            elif status == 0:
                self.report_job_success(info)
            else:
                self.report_job_error(info)

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """End these jobs."""
        for info in active_jobs:
            info.aux["process"].terminate()
