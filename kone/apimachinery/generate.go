// Prints, as JSON, how Go's types spell the Kubernetes API: development only, run by generate.py.
//
// For each struct: its fields in order with JSON name, Go type, omitempty/omitzero, protobuf number and patch strategy.
// Only facts that reflection sees; no documentation.
package main

import (
	"encoding/json"
	"os"
	"reflect"
	"strconv"
	"strings"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/client-go/kubernetes/scheme"
	apiregistration "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
)

type field struct {
	Name     string `json:"name"` // "" where the fields of Type stand in the parent's place
	Type     string `json:"type"`
	Omit     string `json:"omit"` // "", "omitempty" or "omitempty,omitzero"
	Number   int    `json:"number"`
	Strategy string `json:"strategy"`
	MergeKey string `json:"mergeKey"`
}

var types = map[string][]field{}

func identifier(t reflect.Type) string { return t.PkgPath() + "." + t.Name() }

// expression writes a type as Go does, with full paths; a named type that is not a struct as "path.Name=underlying".
func expression(t reflect.Type) string {
	if t.Kind() == reflect.Struct {
		collect(t)
		return identifier(t)
	}
	name := ""
	if t.PkgPath() != "" {
		name = identifier(t) + "="
	}
	switch t.Kind() {
	case reflect.Pointer:
		return name + "*" + expression(t.Elem())
	case reflect.Slice:
		return name + "[]" + expression(t.Elem())
	case reflect.Map:
		return name + "map[" + expression(t.Key()) + "]" + expression(t.Elem())
	default:
		return name + t.Kind().String()
	}
}

func collect(t reflect.Type) {
	if _, known := types[identifier(t)]; known {
		return
	}
	types[identifier(t)] = nil // ends the recursion of types that hold themselves
	fields := []field{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if !f.IsExported() || name == "-" {
			continue
		}
		out := field{Name: name, Type: expression(f.Type), Strategy: f.Tag.Get("patchStrategy"), MergeKey: f.Tag.Get("patchMergeKey")}
		if name != "" {
			out.Omit = options
		}
		if wire := strings.Split(f.Tag.Get("protobuf"), ","); len(wire) > 1 {
			out.Number, _ = strconv.Atoi(wire[1])
		}
		fields = append(fields, out)
	}
	types[identifier(t)] = fields
}

func main() {
	for _, add := range []func() error{
		func() error { return apiextensions.AddToScheme(scheme.Scheme) },
		func() error { return apiregistration.AddToScheme(scheme.Scheme) },
	} {
		if err := add(); err != nil {
			panic(err)
		}
	}
	kinds := map[string]string{}
	for gvk, t := range scheme.Scheme.AllKnownTypes() {
		if gvk.Version != "__internal" {
			collect(t)
			kinds[gvk.Group+"/"+gvk.Version+"/"+gvk.Kind] = identifier(t)
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(map[string]any{"kinds": kinds, "types": types}); err != nil {
		panic(err)
	}
}
