package main

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
)

// kind is the type of an input.
type kind string

const (
	stringKind    kind = "string"
	numberKind    kind = "number"
	integerKind   kind = "integer"
	boolKind      kind = "boolean"
	listKind      kind = "list"
	stringsKind   kind = "list of strings"
	stringMapKind kind = "map of strings"
	objectKind    kind = "object"
	sourceKind    kind = "asset or archive"
)

// field describes one input: its type, and the value that stands where a program gives none.
type field struct {
	kind     kind
	required bool
	fallback any
	oneOf    []string
	fields   map[string]field
}

const (
	remoteCommand = "command:remote:Command"
	copyToRemote  = "command:remote:CopyToRemote"
	localCommand  = "command:local:Command"
)

// endpoint returns the inputs that a connection and its proxy share.
func endpoint() map[string]field {
	return map[string]field{
		"host":               {kind: stringKind, required: true},
		"user":               {kind: stringKind, fallback: "root"},
		"port":               {kind: numberKind, fallback: 22.0},
		"password":           {kind: stringKind},
		"privateKey":         {kind: stringKind},
		"privateKeyPassword": {kind: stringKind},
		"agentSocketPath":    {kind: stringKind},
		"hostKey":            {kind: stringKind},
		"dialErrorLimit":     {kind: integerKind, fallback: 10.0},
		"perDialTimeout":     {kind: integerKind, fallback: 15.0},
	}
}

func connectionField() field {
	fields := endpoint()
	fields["proxy"] = field{kind: objectKind, fields: endpoint()}
	return field{kind: objectKind, required: true, fields: fields}
}

// commandFields returns the inputs that remote and local commands share.
func commandFields() map[string]field {
	return map[string]field{
		"create":                 {kind: stringKind},
		"update":                 {kind: stringKind},
		"delete":                 {kind: stringKind},
		"stdin":                  {kind: stringKind},
		"environment":            {kind: stringMapKind},
		"triggers":               {kind: listKind},
		"logging":                {kind: stringKind, oneOf: []string{"stdout", "stderr", "stdoutAndStderr", "none"}},
		"addPreviousOutputInEnv": {kind: boolKind, fallback: true},
	}
}

// schemas holds the inputs of each resource type. A local command's assetPaths and archivePaths are left out: a stack
// that used them would be told so by Check.
var schemas = func() map[string]map[string]field {
	remote, local := commandFields(), commandFields()
	remote["connection"] = connectionField()
	local["interpreter"] = field{kind: stringsKind}
	local["dir"] = field{kind: stringKind}
	return map[string]map[string]field{
		remoteCommand: remote,
		localCommand:  local,
		copyToRemote: {
			"connection": connectionField(),
			"source":     {kind: sourceKind, required: true},
			"remotePath": {kind: stringKind, required: true},
			"triggers":   {kind: listKind},
		},
	}
}()

// failure says what is wrong with one input.
type failure struct{ property, reason string }

// checkInputs returns the inputs with the defaults applied, and every failure. Values stay out of the reasons: they may
// be secret.
func checkInputs(fields map[string]field, inputs resource.PropertyMap, path string) (resource.PropertyMap, []failure) {
	checked := resource.PropertyMap{}
	var failures []failure
	for _, key := range slices.Sorted(maps.Keys(inputs)) {
		name, value := string(key), inputs[key]
		known, isKnown := fields[name]
		switch {
		case strings.HasPrefix(name, "__"): // what the engine keeps there for itself
		case !isKnown:
			failures = append(failures, failure{path + name, fmt.Sprintf("Unrecognized field %q", path+name)})
		case value.IsNull():
		default:
			result, found := checkValue(known, value, path+name)
			checked[key] = result
			failures = append(failures, found...)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if _, given := checked[resource.PropertyKey(name)]; given {
			continue
		}
		if fields[name].required && !slices.ContainsFunc(failures, func(f failure) bool { return f.property == path+name }) {
			failures = append(failures, failure{path + name, fmt.Sprintf("Missing required field %q", path+name)})
		}
		if fields[name].fallback != nil {
			checked[resource.PropertyKey(name)] = resource.NewPropertyValue(fields[name].fallback)
		}
	}
	return checked, failures
}

// checkValue checks one value; it stays as secret as it came, and what a preview doesn't know yet passes.
func checkValue(f field, value resource.PropertyValue, path string) (resource.PropertyValue, []failure) {
	switch {
	case value.IsComputed():
		return value, nil
	case value.IsSecret():
		inner, failures := checkValue(f, value.SecretValue().Element, path)
		return resource.MakeSecret(inner), failures
	case f.kind == objectKind && value.IsObject():
		inner, failures := checkInputs(f.fields, value.ObjectValue(), path+".")
		return resource.NewProperty(inner), failures
	case !hasKind(f.kind, value):
		return value, []failure{{path, fmt.Sprintf("Field %q must be a %s", path, f.kind)}}
	case len(f.oneOf) > 0 && !slices.Contains(f.oneOf, value.StringValue()):
		return value, []failure{{path, fmt.Sprintf("Field %q must be one of %s", path, strings.Join(f.oneOf, ", "))}}
	}
	return value, nil
}

func hasKind(k kind, value resource.PropertyValue) bool {
	switch k {
	case stringKind:
		return value.IsString()
	case numberKind:
		return value.IsNumber()
	case integerKind:
		return value.IsNumber() && value.NumberValue() == math.Trunc(value.NumberValue())
	case boolKind:
		return value.IsBool()
	case listKind:
		return value.IsArray()
	case stringsKind:
		return value.IsArray() && !slices.ContainsFunc(value.ArrayValue(), isNotString)
	case stringMapKind:
		return value.IsObject() && !slices.ContainsFunc(slices.Collect(maps.Values(value.ObjectValue())), isNotString)
	case sourceKind:
		if value.IsAsset() {
			return value.AssetValue().IsPath() || value.AssetValue().IsText()
		}
		return value.IsArchive() && value.ArchiveValue().IsPath()
	}
	return false
}

// isNotString tells what can't stand in a list or map of strings. An element may be secret or not known yet.
func isNotString(value resource.PropertyValue) bool {
	value = plain(value)
	return !value.IsString() && !value.IsComputed()
}

// plain returns the value without any mark of secrecy, at any depth.
func plain(value resource.PropertyValue) resource.PropertyValue {
	switch {
	case value.IsSecret():
		return plain(value.SecretValue().Element)
	case value.IsObject():
		return resource.NewProperty(plainMap(value.ObjectValue()))
	case value.IsArray():
		items := make([]resource.PropertyValue, 0, len(value.ArrayValue()))
		for _, item := range value.ArrayValue() {
			items = append(items, plain(item))
		}
		return resource.NewProperty(items)
	}
	return value
}

func plainMap(properties resource.PropertyMap) resource.PropertyMap {
	result := make(resource.PropertyMap, len(properties))
	for key, value := range properties {
		result[key] = plain(value)
	}
	return result
}
