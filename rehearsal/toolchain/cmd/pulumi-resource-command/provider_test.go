package main

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
)

type object = map[string]any

func properties(values object) resource.PropertyMap {
	return resource.NewPropertyMapFromMap(values)
}

func TestCheckAppliesDefaults(t *testing.T) {
	inputs := properties(object{"create": "true", "connection": object{"host": "a", "proxy": object{"host": "b"}}})
	inputs["connection"] = resource.MakeSecret(inputs["connection"])

	checked, failures := checkInputs(schemas[remoteCommand], inputs, "")

	if len(failures) > 0 {
		t.Fatalf("unexpected failures: %v", failures)
	}
	if !checked["connection"].IsSecret() {
		t.Error("a secret connection must stay secret")
	}
	endpoint := func(host string) object {
		return object{"host": host, "user": "root", "port": 22.0, "dialErrorLimit": 10.0, "perDialTimeout": 15.0}
	}
	connection := endpoint("a")
	connection["proxy"] = endpoint("b")
	want := properties(object{"create": "true", "addPreviousOutputInEnv": true, "connection": connection})
	if got := plainMap(checked); !got.DeepEquals(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestCheckNamesWhatIsWrong(t *testing.T) {
	good := object{"host": "a"}
	for name, test := range map[string]struct {
		resourceType string
		inputs       object
		property     string
	}{
		"unknown input":       {remoteCommand, object{"connection": good, "creat": "x"}, "creat"},
		"unknown below":       {remoteCommand, object{"connection": object{"host": "a", "hostkey": "x"}}, "connection.hostkey"},
		"missing connection":  {remoteCommand, object{"create": "x"}, "connection"},
		"missing host":        {remoteCommand, object{"connection": object{"port": 22.0}}, "connection.host"},
		"missing proxy host":  {remoteCommand, object{"connection": object{"host": "a", "proxy": object{}}}, "connection.proxy.host"},
		"no nested proxy":     {remoteCommand, object{"connection": object{"host": "a", "proxy": object{"host": "b", "proxy": good}}}, "connection.proxy.proxy"},
		"port is no string":   {remoteCommand, object{"connection": object{"host": "a", "port": "22"}}, "connection.port"},
		"limit is whole":      {remoteCommand, object{"connection": object{"host": "a", "dialErrorLimit": 1.5}}, "connection.dialErrorLimit"},
		"create is text":      {remoteCommand, object{"connection": good, "create": 7.0}, "create"},
		"environment is text": {remoteCommand, object{"connection": good, "environment": object{"A": 1.0}}, "environment"},
		"logging is a choice": {remoteCommand, object{"connection": good, "logging": "all"}, "logging"},
		"copy without source": {copyToRemote, object{"connection": good, "remotePath": "/a"}, "source"},
		"copy of text":        {copyToRemote, object{"connection": good, "remotePath": "/a", "source": "x"}, "source"},
		"local connection":    {localCommand, object{"connection": good}, "connection"},
	} {
		t.Run(name, func(t *testing.T) {
			_, failures := checkInputs(schemas[test.resourceType], properties(test.inputs), "")
			if len(failures) != 1 || failures[0].property != test.property ||
				!strings.Contains(failures[0].reason, test.property) {
				t.Errorf("got %v, want one failure of %s", failures, test.property)
			}
		})
	}
}

func TestCheckPassesWhatAPreviewDoesNotKnow(t *testing.T) {
	unknown := resource.MakeComputed(resource.NewProperty(""))
	inputs := resource.PropertyMap{"connection": resource.MakeSecret(unknown), "stdin": unknown}
	if _, failures := checkInputs(schemas[remoteCommand], inputs, ""); len(failures) > 0 {
		t.Errorf("unexpected failures: %v", failures)
	}
}

func TestDiff(t *testing.T) {
	old := object{"create": "a", "stdin": "s", "triggers": []any{"1"}, "connection": object{"host": "a"}}
	with := func(key string, value any) object {
		changed := maps.Clone(old)
		if value == nil {
			delete(changed, key)
		} else {
			changed[key] = value
		}
		return changed
	}
	for name, test := range map[string]struct {
		news     object
		diffs    []string
		replaces bool
	}{
		"nothing":           {old, nil, false},
		"create":            {with("create", "b"), []string{"create"}, false},
		"connection":        {with("connection", object{"host": "b"}), []string{"connection.host"}, false},
		"delete added":      {with("delete", "d"), []string{"delete"}, false},
		"stdin removed":     {with("stdin", nil), []string{"stdin"}, false},
		"triggers changed":  {with("triggers", []any{"2"}), []string{"triggers[0]"}, true},
		"triggers extended": {with("triggers", []any{"1", "2"}), []string{"triggers[1]"}, true},
		"triggers removed":  {with("triggers", nil), []string{"triggers"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			response := diffInputs(properties(old), properties(test.news))
			got := slices.Sorted(maps.Keys(response.DetailedDiff))
			if !slices.Equal(got, test.diffs) {
				t.Errorf("differences: got %v, want %v", got, test.diffs)
			}
			if replaces := len(response.Replaces) > 0; replaces != test.replaces {
				t.Errorf("replaces: got %v, want %v", replaces, test.replaces)
			}
			if changes := response.Changes == pulumirpc.DiffResponse_DIFF_SOME; changes != (len(test.diffs) > 0) {
				t.Errorf("changes: got %v", response.Changes)
			}
		})
	}
}

func TestDiffIgnoresSecrecy(t *testing.T) {
	secret := resource.PropertyMap{"stdin": resource.MakeSecret(resource.NewProperty("s"))}
	if response := diffInputs(secret, plainMap(secret)); response.Changes != pulumirpc.DiffResponse_DIFF_NONE {
		t.Errorf("got %v, want no change", response.Changes)
	}
}
