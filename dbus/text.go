package dbus

import (
	"reflect"
	"strings"
	"unicode/utf8"

	godbus "github.com/godbus/dbus/v5"

	"github.com/magikrun/magikpod/dbus/contract"
)

// fit makes all text within values fit for the bus. Much of it was written by containers, guests
// and registries; a message that has one wrong byte is not sent at all. Everything that leaves the
// server goes through here.
func fit(values []any) []any {
	if v := reflect.ValueOf(values); !fits(v) {
		return fitted(v).Interface().([]any)
	}
	return values
}

var variantType = reflect.TypeFor[godbus.Variant]()

// fits says whether all text within v is fit for the bus.
func fits(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Interface:
		return fits(v.Elem())
	case reflect.String:
		s := v.String()
		return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return true
		}
		for i := range v.Len() {
			if !fits(v.Index(i)) {
				return false
			}
		}
	case reflect.Map:
		for at := v.MapRange(); at.Next(); {
			if !fits(at.Key()) || !fits(at.Value()) {
				return false
			}
		}
	case reflect.Struct:
		if v.Type() == variantType {
			return fits(reflect.ValueOf(v.Interface().(godbus.Variant).Value()))
		}
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() && !fits(v.Field(i)) {
				return false
			}
		}
	}
	return true
}

// fitted is a copy of v whose text is fit for the bus.
func fitted(v reflect.Value) reflect.Value {
	out := reflect.New(v.Type()).Elem()
	out.Set(v)
	switch v.Kind() {
	case reflect.Interface:
		out.Set(fitted(v.Elem()))
	case reflect.String:
		out.SetString(contract.FitText(v.String()))
	case reflect.Slice:
		out.Set(reflect.MakeSlice(v.Type(), v.Len(), v.Len()))
		for i := range v.Len() {
			out.Index(i).Set(fitted(v.Index(i)))
		}
	case reflect.Map:
		out.Set(reflect.MakeMap(v.Type()))
		for at := v.MapRange(); at.Next(); {
			out.SetMapIndex(fitted(at.Key()), fitted(at.Value()))
		}
	case reflect.Struct:
		if v.Type() == variantType {
			inner := reflect.ValueOf(v.Interface().(godbus.Variant).Value())
			return reflect.ValueOf(godbus.MakeVariant(fitted(inner).Interface()))
		}
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				out.Field(i).Set(fitted(v.Field(i)))
			}
		}
	}
	return out
}
