// An operator as controller-runtime makes them, for tests/e2e/test_operators.py: it holds the leader's lease, sees
// Greetings through a cached informer, applies a ConfigMap for each by server-side apply, keeps a finalizer, patches
// the status, and serves a mutating and a validating webhook of its own.
//
//	go build -o /var/tmp/operator . && KONE_TEST_OPERATOR=/var/tmp/operator make test
package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	corev1apply "k8s.io/client-go/applyconfigurations/core/v1"
	metav1apply "k8s.io/client-go/applyconfigurations/meta/v1"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

const (
	owner     = "greeting-operator"
	finalizer = "operator.kone.dev/farewell"
)

var version = schema.GroupVersion{Group: "operator.kone.dev", Version: "v1"}

type GreetingSpec struct {
	Text string `json:"text,omitempty"`
	Loud bool   `json:"loud,omitempty"`
}

type GreetingStatus struct {
	Said               string             `json:"said,omitempty"`
	ObservedGeneration int64              `json:"observedGeneration,omitempty"`
	Conditions         []metav1.Condition `json:"conditions,omitempty"`
}

type Greeting struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              GreetingSpec   `json:"spec,omitempty"`
	Status            GreetingStatus `json:"status,omitempty"`
}

type GreetingList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Greeting `json:"items"`
}

func (in *Greeting) DeepCopyObject() runtime.Object {
	out := *in
	in.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	out.Status.Conditions = append([]metav1.Condition(nil), in.Status.Conditions...)
	return &out
}

func (in *GreetingList) DeepCopyObject() runtime.Object {
	out := GreetingList{TypeMeta: in.TypeMeta, ListMeta: in.ListMeta}
	for i := range in.Items {
		out.Items = append(out.Items, *in.Items[i].DeepCopyObject().(*Greeting))
	}
	return &out
}

type reconciler struct{ client.Client }

func (r *reconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	var greeting Greeting
	if err := r.Get(ctx, request.NamespacedName, &greeting); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if !greeting.DeletionTimestamp.IsZero() {
		return ctrl.Result{}, r.sayFarewell(ctx, &greeting)
	}
	if controllerutil.AddFinalizer(&greeting, finalizer) {
		return ctrl.Result{}, r.Update(ctx, &greeting)
	}
	said := greeting.Spec.Text
	if greeting.Spec.Loud {
		said = strings.ToUpper(said)
	}
	wanted := corev1apply.ConfigMap(greeting.Name, greeting.Namespace).
		WithData(map[string]string{"said": said}).
		WithOwnerReferences(metav1apply.OwnerReference().
			WithAPIVersion(version.String()).WithKind("Greeting").WithName(greeting.Name).WithUID(greeting.UID).
			WithController(true).WithBlockOwnerDeletion(true))
	if err := r.Apply(ctx, wanted, client.FieldOwner(owner), client.ForceOwnership); err != nil {
		return ctrl.Result{}, err
	}
	before := greeting.DeepCopyObject().(*Greeting)
	greeting.Status.Said = said
	greeting.Status.ObservedGeneration = greeting.Generation
	greeting.Status.Conditions = []metav1.Condition{{
		Type: "Ready", Status: metav1.ConditionTrue, Reason: "Said", LastTransitionTime: greeting.CreationTimestamp,
	}}
	return ctrl.Result{}, r.Status().Patch(ctx, &greeting, client.MergeFrom(before))
}

// sayFarewell leaves word in the ConfigMap "farewells", then lets the greeting go.
func (r *reconciler) sayFarewell(ctx context.Context, greeting *Greeting) error {
	farewells := corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: greeting.Namespace, Name: "farewells"}}
	_, err := controllerutil.CreateOrUpdate(ctx, r.Client, &farewells, func() error {
		if farewells.Data == nil {
			farewells.Data = map[string]string{}
		}
		farewells.Data[greeting.Name] = "bye"
		return nil
	})
	if err != nil {
		return err
	}
	if controllerutil.RemoveFinalizer(greeting, finalizer) {
		return client.IgnoreNotFound(r.Update(ctx, greeting))
	}
	return nil
}

type defaulter struct{}

func (defaulter) Default(_ context.Context, greeting *Greeting) error {
	if greeting.Spec.Text == "" {
		greeting.Spec.Text = "hello"
	}
	return nil
}

type validator struct{}

func (validator) ValidateCreate(_ context.Context, greeting *Greeting) (admission.Warnings, error) {
	if strings.Contains(greeting.Spec.Text, "!") {
		return nil, apierrors.NewForbidden(version.WithResource("greetings").GroupResource(), greeting.Name,
			fmt.Errorf("greetings are quiet"))
	}
	return admission.Warnings{"a greeting was looked at"}, nil
}

func (v validator) ValidateUpdate(ctx context.Context, _, greeting *Greeting) (admission.Warnings, error) {
	return v.ValidateCreate(ctx, greeting)
}

func (validator) ValidateDelete(context.Context, *Greeting) (admission.Warnings, error) { return nil, nil }

func run(namespace, certificates string, port int) error {
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		return err
	}
	scheme.AddKnownTypes(version, &Greeting{}, &GreetingList{})
	metav1.AddToGroupVersion(scheme, version)
	manager, err := ctrl.NewManager(ctrl.GetConfigOrDie(), ctrl.Options{
		Scheme:                        scheme,
		LeaderElection:                true,
		LeaderElectionID:              owner,
		LeaderElectionNamespace:       namespace,
		LeaderElectionReleaseOnCancel: true,
		Metrics:                       metricsserver.Options{BindAddress: "0"},
		WebhookServer:                 webhook.NewServer(webhook.Options{Host: "127.0.0.1", Port: port, CertDir: certificates}),
	})
	if err != nil {
		return err
	}
	err = ctrl.NewControllerManagedBy(manager).For(&Greeting{}).Owns(&corev1.ConfigMap{}).
		Complete(&reconciler{manager.GetClient()})
	if err != nil {
		return err
	}
	err = ctrl.NewWebhookManagedBy(manager, &Greeting{}).WithDefaulter(defaulter{}).WithValidator(validator{}).Complete()
	if err != nil {
		return err
	}
	return manager.Start(ctrl.SetupSignalHandler())
}

func main() {
	ctrl.SetLogger(zap.New())
	port, err := strconv.Atoi(os.Args[3])
	if err == nil {
		err = run(os.Args[1], os.Args[2], port)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
