"""Every verb of kubectl that needs no running container, against an API with controllers: conversations, each read as
it would be typed. What containers answer (exec, logs, attach, debug, …) is in test_kubectl_pods.py and
test_streams.py; apply, diff, replace and edit are in test_kubectl_apply.py.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID

from kone.testing import Cluster
from tests.e2e.kubectl_shell import KUBECTL, Shell

pytestmark = pytest.mark.ring4

NODE = "{apiVersion: v1, kind: Node, metadata: {name: n1}}"
POD = "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, image: i}]}}"
CONFIGMAP = "{apiVersion: v1, kind: ConfigMap, metadata: {name: %s, labels: {set: one}}, data: {k: v}}"
ROLE = (
    "{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {name: reader, namespace: default},"
    ' rules: [{apiGroups: [""], resources: [pods], verbs: [get]}]}'
)


class Step(NamedTuple):
    """What is typed after `kubectl`, and a pattern of what is printed (both streams)."""

    typed: str
    printed: str
    stdin: str = ""
    code: int = 0


CONVERSATIONS = {
    "what there is": [
        Step("api-resources --sort-by=name", r"deployments +deploy +apps/v1 +true +Deployment"),
        Step("api-resources --namespaced=false --verbs=list -o name", r"(?m)^nodes$"),
        Step("api-versions", r"(?s)apps/v1\n.*flowcontrol.apiserver.k8s.io/v1\n.*\nv1\n"),
        Step("cluster-info", "Kubernetes control plane is running at https://127.0.0.1:"),
        Step("cluster-info dump --namespaces default", '"kind": "NodeList"'),
        Step("version", r"Server Version: v1\.37\.2"),
        Step("config view -o jsonpath={.contexts[0].name}", "kone"),
        Step("get --raw /version", '"minor": "37"'),
        Step("explain deployment.spec.replicas", "Number of desired pods"),
        Step("explain pod.spec.containers --recursive", r"livenessProbe\t<Probe>"),
        Step("explain pod.spec --output plaintext-openapiv2", r"RESOURCE: spec <Object>"),
        Step("explain hpa --api-version=autoscaling/v1", r"VERSION: +v1\n"),
    ],
    "who may do what": [
        Step("auth whoami", r"Username +kubernetes-admin"),
        Step("auth can-i create pods", "yes"),
        Step("auth can-i --list", r"\*\.\* +\[\] +\[\] +\[\*\]"),
        Step("auth can-i get pods --as bob", "no", code=1),
        Step("auth reconcile -f -", "reader reconciled", ROLE),
        Step("auth reconcile -f -", "reader reconciled", ROLE.replace("[get]", "[get, list]")),
        Step("create rolebinding b --role=reader --user=bob", "b created"),
        Step("auth can-i list pods --as bob", "yes"),
        Step("set subject rolebinding b --user=eve", "b subjects updated"),
        Step("auth can-i list pods --as eve", "yes"),
        Step("create serviceaccount sa", "sa created"),
        Step("create token sa --duration=10m --audience=a", r"^ey[\w-]+\.[\w-]+\.[\w-]+\n?$"),
        Step("create clusterrole c --verb=get,list --resource=nodes,deployments.apps", "c created"),
        Step("create clusterrolebinding c --clusterrole=c --serviceaccount=default:sa", "c created"),
        Step("auth can-i get nodes --as system:serviceaccount:default:sa", "yes"),
    ],
    "everything that create makes": [
        Step("create namespace n", "namespace/n created"),
        Step("create configmap c --from-literal=a=b", "configmap/c created"),
        Step("create secret generic g --from-literal=a=b", "secret/g created"),
        Step("create secret docker-registry d --docker-server=s --docker-username=u --docker-password=p", "d created"),
        Step("create role r --verb=get --resource=pods --resource-name=a", "role.rbac.authorization.k8s.io/r created"),
        Step("create quota q --hard=pods=5,configmaps=9", "resourcequota/q created"),
        Step("create poddisruptionbudget b --selector=app=a --min-available=1", "poddisruptionbudget.policy/b created"),
        Step("create priorityclass p --value=10 --description=d", "priorityclass.scheduling.k8s.io/p created"),
        Step("create deployment d --image=i --replicas=2 --port=80", "deployment.apps/d created"),
        Step("create job j --image=i -- true", "job.batch/j created"),
        Step("create cronjob cj --image=i --schedule='0 0 1 1 *' -- true", "cronjob.batch/cj created"),
        Step("create job once --from=cronjob/cj", "job.batch/once created"),
        Step("create service clusterip a --tcp=80:8080", "service/a created"),
        Step("create service nodeport b --tcp=80", "service/b created"),
        Step("create service externalname e --external-name=example.com", "service/e created"),
        Step("create service loadbalancer l --tcp=80", "service/l created"),
        Step("create ingress i --rule=a.example.com/*=a:80,tls=t", "ingress.networking.k8s.io/i created"),
        Step("create configmap c", 'configmaps "c" already exists', code=1),
        Step("create -f - --dry-run=server -o name", "^pod/p\n$", POD),
        Step("describe svc a b e l", r"(?s)TargetPort: +8080/TCP.*External Name: +example\.com"),
        Step("describe deployment d", r"Replicas: +2 desired"),
        Step("describe secrets,quota,pdb,ingress,cronjob,job,configmap", "a.example.com"),
        Step("get all", r"(?s)pod/d-.*service/kubernetes.*deployment.apps/d.*replicaset.apps/d-.*cronjob.batch/cj"),
    ],
    "a deployment's life": [
        Step("create deployment d --image=i:1", "created"),
        Step("set image deployment/d i=i:2", "image updated"),
        Step("set env deployment/d A=B", "env updated"),
        Step("set env deployment/d --list", "A=B"),
        Step("set resources deployment/d --limits=cpu=200m,memory=64Mi", "resource requirements updated"),
        Step("set serviceaccount deployment/d default", "serviceaccount updated"),
        Step("scale deployment/d --replicas=3 --current-replicas=1", "scaled"),
        Step("wait --for=jsonpath={.status.replicas}=4 deployment/d --timeout=20s", "condition met"),
        Step("get deployment d --subresource=scale", r"NAME +DESIRED +AVAILABLE +AGE\nd +3 +4 "),
        Step("get deployment d --subresource=status -o name", "deployment.apps/d"),
        Step("rollout pause deployment/d", "paused"),
        Step("rollout status deployment/d --watch=false", "Waiting for deployment"),
        Step("rollout resume deployment/d", "resumed"),
        Step("rollout restart deployment/d", "restarted"),
        Step("annotate deployment d kubernetes.io/change-cause=why", "annotated"),
        Step("rollout history deployment/d", r"(?s)REVISION +CHANGE-CAUSE\n.*why"),
        Step("rollout history deployment/d --revision=1", "Image:\ti:1"),
        Step("rollout undo deployment/d --to-revision=1", "rolled back"),
        Step("get deployment d -o jsonpath={.spec.template.spec.containers[0].image}", "^i:1$"),
        Step("autoscale deployment/d --min=1 --max=3 --cpu=50%", "horizontalpodautoscaler.autoscaling/d autoscaled"),
        Step("expose deployment/d --port=80 --target-port=8080 --name=e", "service/e exposed"),
        Step("set selector service e app=x", "selector updated"),
        Step("delete deployment d --cascade=orphan", "deleted"),
        Step("get rs -l app=d -o jsonpath={.items[*].metadata.ownerReferences}", "^$"),
        Step("delete rs -l app=d --cascade=foreground", "deleted"),
        Step("get pods -l app=d", "No resources found"),
    ],
    "looking": [
        Step("create -f -", "pod/p created", POD),
        Step("run q --image=i --labels=app=q --restart=Never --env=A=B --command -- sh -c x", "pod/q created"),
        Step("get pods -o wide --sort-by=.metadata.name", r"(?s)NOMINATED NODE.*\np .*\nq "),
        Step("get pods -o custom-columns=N:.metadata.name,I:.spec.containers[*].image", r"N +I\np +i\n"),
        Step("get pods --chunk-size=1 -o name", "^pod/p\npod/q\n$"),
        Step("get pods --field-selector=status.phase=Pending,metadata.name=q -o name", "^pod/q\n$"),
        Step("get pods -l app!=q -L app --show-labels", r"APP +LABELS\np "),
        Step("get pod/p pod/q -o go-template={{len\\ .items}}", "^2$"),
        Step("get pods -A -o jsonpath-as-json={.items[*].metadata.name}", r'"p",\n +"q"'),
        Step("get pod p -o yaml --show-managed-fields", "manager: kubectl-create"),
        Step("get pods nothing --ignore-not-found", "^$"),
        Step("get --raw '/api/v1/namespaces/default/pods?limit=1'", '"remainingItemCount": ?1'),
        Step("describe pod q", r"(?s)Labels: +app=q.*Environment:\n +A: +B"),
        Step("wait --for=create pod/p", "condition met"),
        Step("wait --for=condition=Ready pod/p --timeout=0", "timed out|not met", code=1),
        Step("label pod p tier=a", "labeled"),
        Step("label pods --all tier=b", "must specify|already has a value|overwrite", code=1),
        Step("label pods --all tier=b --overwrite", "pod/p labeled"),
        Step("label pod p tier-", "unlabeled"),
        Step("annotate pod p a=b", "annotated"),
        Step("annotate pod p --list", "a=b"),
        Step("delete pod p q --now", r'"p" deleted from default namespace\npod "q" deleted'),
    ],
    "patches": [
        Step("create deployment d --image=i", "created"),
        Step("""patch deployment d -p '{"metadata": {"labels": {"x": "1"}}}'""", "patched"),
        Step("""patch deployment d --type=merge -p '{"metadata": {"labels": {"x": "2"}}}'""", "patched"),
        Step("""patch deployment d --type=json -p '[{"op": "remove", "path": "/metadata/labels/x"}]'""", "patched"),
        Step("""patch deployment d --type=merge -p '{}'""", "no change"),
        Step("""patch deployment d --subresource=scale --type=merge -p '{"spec": {"replicas": 2}}'""", "patched"),
        Step(
            """patch deployment d --type=json -p '[{"op": "test", "path": "/spec/replicas", "value": 3}]'""", "", "", 1
        ),
        Step("get deployment d -o jsonpath={.spec.replicas}{.metadata.labels}", r'^2{"app":"d"}$'),
    ],
    "apply in sets": [
        Step("apply -f -", "configmap/a created", CONFIGMAP % "a"),
        Step(
            "apply -f - --prune -l set=one --prune-allowlist=core/v1/ConfigMap", "configmap/a pruned", CONFIGMAP % "b"
        ),
        Step("apply set-last-applied -f -", "configured", CONFIGMAP.replace("k: v", "k: w") % "b"),
        Step("apply view-last-applied configmap b", "k: w"),
        Step("apply edit-last-applied configmap b", "configmap/b edited"),
        Step("apply view-last-applied configmap b", "k: x"),
        Step("replace --force -f -", r'(?s)"b" deleted.*configmap/b replaced', CONFIGMAP % "b"),
        Step("delete -f -", '"b" deleted', CONFIGMAP % "b"),
    ],
    "a node's care": [
        Step("create -f -", "node/n1 created", NODE),
        Step("taint node n1 a=b:NoSchedule", "tainted"),
        Step("taint node n1 a=c:NoSchedule", "already has", code=1),
        Step("taint node n1 a:NoSchedule-", "untainted"),
        Step("cordon n1", "cordoned"),
        Step("get node n1", "SchedulingDisabled"),
        Step("uncordon n1", "uncordoned"),
        Step("drain n1 --dry-run=server", "node/n1 drained"),
        Step("drain n1", "node/n1 drained"),
        Step("describe node n1", r"Unschedulable: +true"),
        Step("events --for node/n1", "LAST SEEN|No events found"),
        Step("delete node n1", '"n1" deleted'),
    ],
}


@pytest.mark.parametrize("steps", CONVERSATIONS.values(), ids=CONVERSATIONS)
async def test_conversation(steps: list[Step]) -> None:
    async with Cluster(scheduler=False) as cluster:
        kubectl = Shell(cluster).run
        for step in steps:
            done = await kubectl(*shlex.split(step.typed), stdin=step.stdin, KUBE_EDITOR="sed -i 's/k: w/k: x/'")
            assert done.code == step.code, f"kubectl {step.typed}: {done.out}{done.err}"
            assert re.search(step.printed, done.out + done.err), f"kubectl {step.typed}: {done.out}{done.err}"


def certificate_request(name: str) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .sign(key, SHA256())
        .public_bytes(serialization.Encoding.PEM)
        .decode()
    )


@pytest.mark.parametrize(
    ("verdict", "said", "condition"), [("approve", "approved", "Approved,Issued"), ("deny", "denied", "Denied")]
)
async def test_certificates_are_approved_and_denied(verdict: str, said: str, condition: str) -> None:
    request = base64.b64encode(certificate_request("bob").encode()).decode()
    spec = {"signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"], "request": request}
    wanted = {
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"name": "bob"},
        "spec": spec,
    }
    async with Cluster(scheduler=False) as cluster:
        kubectl = Shell(cluster).run
        assert (await kubectl("create", "-f", "-", stdin=json.dumps(wanted))).code == 0
        assert f"bob {said}" in (await kubectl("certificate", verdict, "bob")).out
        if verdict == "approve":
            waited = await kubectl("wait", "--for=jsonpath={.status.certificate}", "csr/bob", "--timeout=20s")
            assert waited.code == 0, waited.err
        assert condition in (await kubectl("get", "csr", "bob")).out


async def test_tls_secrets_and_kustomizations_come_from_files(tmp_path: Path) -> None:
    async with Cluster(controllers=False, scheduler=False) as cluster:
        kubectl = Shell(cluster).run
        pki = cluster.kubeconfig.parent / "pki"
        pair = (f"--cert={pki / 'apiserver.crt'}", f"--key={pki / 'apiserver.key'}")
        assert (await kubectl("create", "secret", "tls", "t", *pair)).out == "secret/t created\n"
        (tmp_path / "kustomization.yaml").write_text("namePrefix: x-\nresources: [a.yaml]\n")
        (tmp_path / "a.yaml").write_text(CONFIGMAP % "a")
        assert (await kubectl("apply", "-k", str(tmp_path))).out == "configmap/x-a created\n"
        assert (await kubectl("kustomize", str(tmp_path))).out.startswith("apiVersion: v1\n")


async def test_a_watch_prints_what_changes() -> None:
    async with Cluster(controllers=False, scheduler=False) as cluster:
        process = await asyncio.create_subprocess_exec(
            *(KUBECTL, "--kubeconfig", str(cluster.kubeconfig), "get", "configmaps", "--watch", "-o", "name"),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        try:
            kubectl = Shell(cluster).run
            await kubectl("create", "configmap", "seen")
            async with asyncio.timeout(30):
                assert await process.stdout.readline() == b"configmap/seen\n"
        finally:
            process.kill()
            await process.wait()


async def test_a_proxy_serves_the_api_to_those_who_cannot_sign() -> None:
    async with Cluster(controllers=False, scheduler=False) as cluster:
        process = await asyncio.create_subprocess_exec(
            *(KUBECTL, "--kubeconfig", str(cluster.kubeconfig), "proxy", "--port=0"), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(30), aiohttp.ClientSession() as session:
                where = (await process.stdout.readline()).decode().split()[-1]
                async with session.get(f"http://{where}/api/v1/namespaces/default") as answer:
                    assert (await answer.json())["metadata"]["name"] == "default"
        finally:
            process.kill()
            await process.wait()
