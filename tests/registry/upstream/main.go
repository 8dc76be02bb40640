// Answers what upstream's own strategies say to bodies: one question a line on stdin, one answer a line on stdout.
//
// Development only: oracle.py builds and runs it. A question is {"new": body, "old": body or null, "sub": "status" or
// "" …}; an answer {"error": message, "warnings": [texts], "object": what would be stored}.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/warning"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	_ "k8s.io/kubernetes/pkg/apis/admissionregistration/install"
	_ "k8s.io/kubernetes/pkg/apis/apps/install"
	_ "k8s.io/kubernetes/pkg/apis/autoscaling/install"
	_ "k8s.io/kubernetes/pkg/apis/batch/install"
	_ "k8s.io/kubernetes/pkg/apis/certificates/install"
	_ "k8s.io/kubernetes/pkg/apis/coordination/install"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	_ "k8s.io/kubernetes/pkg/apis/discovery/install"
	_ "k8s.io/kubernetes/pkg/apis/events/install"
	_ "k8s.io/kubernetes/pkg/apis/flowcontrol/install"
	_ "k8s.io/kubernetes/pkg/apis/networking/install"
	_ "k8s.io/kubernetes/pkg/apis/node/install"
	_ "k8s.io/kubernetes/pkg/apis/policy/install"
	_ "k8s.io/kubernetes/pkg/apis/rbac/install"
	_ "k8s.io/kubernetes/pkg/apis/scheduling/install"
	_ "k8s.io/kubernetes/pkg/apis/storage/install"
	"k8s.io/kubernetes/pkg/capabilities"

	"k8s.io/kubernetes/pkg/registry/admissionregistration/mutatingwebhookconfiguration"
	"k8s.io/kubernetes/pkg/registry/admissionregistration/validatingwebhookconfiguration"
	"k8s.io/kubernetes/pkg/registry/apps/controllerrevision"
	"k8s.io/kubernetes/pkg/registry/apps/daemonset"
	"k8s.io/kubernetes/pkg/registry/apps/deployment"
	"k8s.io/kubernetes/pkg/registry/apps/replicaset"
	"k8s.io/kubernetes/pkg/registry/apps/statefulset"
	"k8s.io/kubernetes/pkg/registry/autoscaling/horizontalpodautoscaler"
	"k8s.io/kubernetes/pkg/registry/batch/cronjob"
	"k8s.io/kubernetes/pkg/registry/batch/job"
	"k8s.io/kubernetes/pkg/registry/certificates/certificates"
	"k8s.io/kubernetes/pkg/registry/certificates/clustertrustbundle"
	"k8s.io/kubernetes/pkg/registry/coordination/lease"
	"k8s.io/kubernetes/pkg/registry/core/configmap"
	"k8s.io/kubernetes/pkg/registry/core/endpoint"
	"k8s.io/kubernetes/pkg/registry/core/event"
	"k8s.io/kubernetes/pkg/registry/core/limitrange"
	"k8s.io/kubernetes/pkg/registry/core/namespace"
	"k8s.io/kubernetes/pkg/registry/core/node"
	"k8s.io/kubernetes/pkg/registry/core/persistentvolume"
	"k8s.io/kubernetes/pkg/registry/core/persistentvolumeclaim"
	"k8s.io/kubernetes/pkg/registry/core/pod"
	"k8s.io/kubernetes/pkg/registry/core/podtemplate"
	"k8s.io/kubernetes/pkg/registry/core/replicationcontroller"
	"k8s.io/kubernetes/pkg/registry/core/resourcequota"
	"k8s.io/kubernetes/pkg/registry/core/secret"
	"k8s.io/kubernetes/pkg/registry/core/service"
	"k8s.io/kubernetes/pkg/registry/core/serviceaccount"
	"k8s.io/kubernetes/pkg/registry/discovery/endpointslice"
	"k8s.io/kubernetes/pkg/registry/flowcontrol/flowschema"
	"k8s.io/kubernetes/pkg/registry/flowcontrol/prioritylevelconfiguration"
	"k8s.io/kubernetes/pkg/registry/networking/ingress"
	"k8s.io/kubernetes/pkg/registry/networking/ingressclass"
	"k8s.io/kubernetes/pkg/registry/networking/ipaddress"
	"k8s.io/kubernetes/pkg/registry/networking/networkpolicy"
	"k8s.io/kubernetes/pkg/registry/networking/servicecidr"
	"k8s.io/kubernetes/pkg/registry/node/runtimeclass"
	"k8s.io/kubernetes/pkg/registry/policy/poddisruptionbudget"
	"k8s.io/kubernetes/pkg/registry/rbac/clusterrole"
	"k8s.io/kubernetes/pkg/registry/rbac/clusterrolebinding"
	"k8s.io/kubernetes/pkg/registry/rbac/role"
	"k8s.io/kubernetes/pkg/registry/rbac/rolebinding"
	"k8s.io/kubernetes/pkg/registry/scheduling/priorityclass"
	"k8s.io/kubernetes/pkg/registry/storage/csidriver"
	"k8s.io/kubernetes/pkg/registry/storage/csinode"
	"k8s.io/kubernetes/pkg/registry/storage/csistoragecapacity"
	"k8s.io/kubernetes/pkg/registry/storage/storageclass"
	"k8s.io/kubernetes/pkg/registry/storage/volumeattachment"
	"k8s.io/kubernetes/pkg/registry/storage/volumeattributesclass"
)

var creates = map[string]rest.RESTCreateStrategy{
	"Pod": pod.Strategy, "PodTemplate": podtemplate.Strategy, "ReplicationController": replicationcontroller.Strategy,
	"Service": service.Strategy, "Endpoints": endpoint.Strategy, "ConfigMap": configmap.Strategy, "Secret": secret.Strategy,
	"ServiceAccount": serviceaccount.Strategy, "Namespace": namespace.Strategy, "Node": node.Strategy, "Event": event.Strategy,
	"LimitRange": limitrange.Strategy, "ResourceQuota": resourcequota.Strategy, "PersistentVolume": persistentvolume.Strategy,
	"PersistentVolumeClaim": persistentvolumeclaim.Strategy,
	"Deployment":            deployment.Strategy, "ReplicaSet": replicaset.Strategy, "DaemonSet": daemonset.Strategy, "StatefulSet": statefulset.Strategy,
	"ControllerRevision": controllerrevision.Strategy, "Job": job.Strategy, "CronJob": cronjob.Strategy,
	"Ingress":                        ingress.Strategy,
	"IngressClass":                   ingressclass.Strategy,
	"IPAddress":                      ipaddress.Strategy,
	"NetworkPolicy":                  networkpolicy.Strategy,
	"ServiceCIDR":                    servicecidr.Strategy,
	"PodDisruptionBudget":            poddisruptionbudget.Strategy,
	"ClusterRole":                    clusterrole.Strategy,
	"ClusterRoleBinding":             clusterrolebinding.Strategy,
	"Role":                           role.Strategy,
	"RoleBinding":                    rolebinding.Strategy,
	"PriorityClass":                  priorityclass.Strategy,
	"CSIDriver":                      csidriver.Strategy,
	"CSINode":                        csinode.Strategy,
	"CSIStorageCapacity":             csistoragecapacity.Strategy,
	"StorageClass":                   storageclass.Strategy,
	"VolumeAttachment":               volumeattachment.Strategy,
	"VolumeAttributesClass":          volumeattributesclass.Strategy,
	"Lease":                          lease.Strategy,
	"EndpointSlice":                  endpointslice.Strategy,
	"RuntimeClass":                   runtimeclass.Strategy,
	"FlowSchema":                     flowschema.Strategy,
	"PriorityLevelConfiguration":     prioritylevelconfiguration.Strategy,
	"HorizontalPodAutoscaler":        horizontalpodautoscaler.Strategy,
	"CertificateSigningRequest":      certificates.Strategy,
	"ClusterTrustBundle":             clustertrustbundle.Strategy,
	"MutatingWebhookConfiguration":   mutatingwebhookconfiguration.Strategy,
	"ValidatingWebhookConfiguration": validatingwebhookconfiguration.Strategy,
}

var updates = map[string]rest.RESTUpdateStrategy{
	"Pod/status": pod.StatusStrategy, "Pod/ephemeralcontainers": pod.EphemeralContainersStrategy, "Pod/resize": pod.ResizeStrategy,
	"Service/status": service.StatusStrategy, "ReplicationController/status": replicationcontroller.StatusStrategy,
	"Namespace/status": namespace.StatusStrategy, "Namespace/finalize": namespace.FinalizeStrategy, "Node/status": node.StatusStrategy,
	"ResourceQuota/status": resourcequota.StatusStrategy, "PersistentVolume/status": persistentvolume.StatusStrategy,
	"PersistentVolumeClaim/status": persistentvolumeclaim.StatusStrategy,
	"Deployment/status":            deployment.StatusStrategy, "ReplicaSet/status": replicaset.StatusStrategy,
	"DaemonSet/status": daemonset.StatusStrategy, "StatefulSet/status": statefulset.StatusStrategy,
	"Job/status": job.StatusStrategy, "CronJob/status": cronjob.StatusStrategy,
	"Ingress/status":                     ingress.StatusStrategy,
	"ServiceCIDR/status":                 servicecidr.StatusStrategy,
	"PodDisruptionBudget/status":         poddisruptionbudget.StatusStrategy,
	"CSINode/status":                     csinode.StatusStrategy,
	"VolumeAttachment/status":            volumeattachment.StatusStrategy,
	"FlowSchema/status":                  flowschema.StatusStrategy,
	"PriorityLevelConfiguration/status":  prioritylevelconfiguration.StatusStrategy,
	"HorizontalPodAutoscaler/status":     horizontalpodautoscaler.StatusStrategy,
	"CertificateSigningRequest/status":   certificates.StatusStrategy,
	"CertificateSigningRequest/approval": certificates.ApprovalStrategy,
}

type question struct {
	Sub string          `json:"sub"`
	New json.RawMessage `json:"new"`
	Old json.RawMessage `json:"old"`
}

type answer struct {
	Error    string          `json:"error"`
	Warnings []string        `json:"warnings"`
	Object   json.RawMessage `json:"object"`
}

type recorder struct{ texts []string }

func (r *recorder) AddWarning(agent, text string) { r.texts = append(r.texts, text) }

func decode(raw []byte) (runtime.Object, error) {
	obj, _, err := legacyscheme.Codecs.UniversalDecoder().Decode(raw, nil, nil)
	return obj, err
}

func ask(q question) (a answer) {
	defer func() {
		if r := recover(); r != nil {
			a.Error = fmt.Sprint("panic: ", r)
		}
	}()
	var named metav1.TypeMeta
	if err := json.Unmarshal(q.New, &named); err != nil {
		return answer{Error: err.Error()}
	}
	gvk := schema.FromAPIVersionAndKind(named.APIVersion, named.Kind)
	obj, err := decode(q.New)
	if err != nil {
		return answer{Error: err.Error()}
	}
	heard := &recorder{}
	ctx := warning.WithWarningRecorder(context.Background(), heard)
	accessor, _ := meta.Accessor(obj)
	namespace := ""
	if creates[gvk.Kind].(rest.NamespaceScopedStrategy).NamespaceScoped() {
		namespace = "default"
		if accessor.GetNamespace() == "" {
			accessor.SetNamespace(namespace)
		}
	}
	ctx = genericapirequest.WithNamespace(ctx, namespace)
	ctx = genericapirequest.WithRequestInfo(ctx, &genericapirequest.RequestInfo{
		APIGroup: gvk.Group, APIVersion: gvk.Version, Subresource: q.Sub, IsResourceRequest: true,
	})
	if len(q.Old) == 0 || string(q.Old) == "null" {
		rest.FillObjectMetaSystemFields(accessor)
		accessor.SetUID("u")
		err = rest.BeforeCreate(creates[gvk.Kind], ctx, obj)
	} else {
		old, failed := decode(q.Old)
		if failed != nil {
			return answer{Error: "old: " + failed.Error()}
		}
		before, _ := meta.Accessor(old)
		if before.GetNamespace() == "" {
			before.SetNamespace(namespace)
		}
		for _, each := range []metav1.Object{before, accessor} {
			each.SetResourceVersion("1")
			each.SetUID("u")
		}
		accessor.SetGeneration(before.GetGeneration())
		strategy, found := updates[gvk.Kind+"/"+q.Sub]
		if !found {
			strategy = creates[gvk.Kind].(rest.RESTUpdateStrategy)
		}
		err = rest.BeforeUpdate(strategy, ctx, obj, old)
	}
	a.Warnings = heard.texts
	if err != nil {
		a.Error = err.Error()
		return a
	}
	codec := legacyscheme.Codecs.LegacyCodec(gvk.GroupVersion())
	text, err := runtime.Encode(codec, obj)
	if err == nil {
		// What is read from the store is given defaults once more.
		if obj, err = decode(text); err == nil {
			text, err = runtime.Encode(codec, obj)
		}
	}
	if err != nil {
		return answer{Error: "encode: " + err.Error()}
	}
	a.Object = json.RawMessage(strings.TrimSpace(string(text)))
	return a
}

func main() {
	capabilities.Setup(true, 0)
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(make([]byte, 1<<20), 1<<26)
	for in.Scan() {
		var q question
		a := answer{}
		if err := json.Unmarshal(in.Bytes(), &q); err != nil {
			a.Error = err.Error()
		} else {
			a = ask(q)
		}
		text, _ := json.Marshal(a)
		fmt.Println(string(text))
	}
}
