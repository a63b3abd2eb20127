"""`vocabseg doctor`: what this machine has, and which engine would run here."""

HELP = "Show what is installed, which engine would be used on this machine and why, and what the others lack."
EXAMPLE = "Example: vocabseg doctor"


def doctor() -> None:
    from vocabseg.runtime.doctor import examine

    findings = examine()
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        mark = "ok" if finding.fine else "--"
        print(f"{mark}  {finding.what:<{width}}  {finding.text}")
