// Command exported prints the exported names of Go source files, one a line:
// FILE KIND NAME, where KIND is const, var, func, type, method or field.
// Only what a user of the package can write is listed: methods and fields of
// exported types, methods of exported interfaces, values of const blocks.
//
// Usage: go run exported.go -- FILE.go...
package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"sort"
)

func main() {
	var lines []string
	for _, path := range os.Args[1:] {
		if path == "--" {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		for _, name := range names(file) {
			lines = append(lines, filepath.Base(path)+" "+name)
		}
	}
	sort.Strings(lines)
	for _, line := range lines {
		fmt.Println(line)
	}
}

func names(file *ast.File) []string {
	var found []string
	for _, decl := range file.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil {
				if d.Name.IsExported() {
					found = append(found, "func "+d.Name.Name)
				}
			} else if owner := receiver(d.Recv.List[0].Type); ast.IsExported(owner) && d.Name.IsExported() {
				found = append(found, "method "+owner+"."+d.Name.Name)
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				found = append(found, ofSpec(d.Tok, spec)...)
			}
		}
	}
	return found
}

func ofSpec(tok token.Token, spec ast.Spec) []string {
	var found []string
	switch s := spec.(type) {
	case *ast.ValueSpec:
		for _, name := range s.Names {
			if name.IsExported() {
				found = append(found, tok.String()+" "+name.Name)
			}
		}
	case *ast.TypeSpec:
		if !s.Name.IsExported() {
			return nil
		}
		found = append(found, "type "+s.Name.Name)
		var kind string
		var list *ast.FieldList
		switch t := s.Type.(type) {
		case *ast.StructType:
			kind, list = "field ", t.Fields
		case *ast.InterfaceType:
			kind, list = "method ", t.Methods
		default:
			return found
		}
		for _, field := range list.List {
			for _, name := range field.Names {
				if name.IsExported() {
					found = append(found, kind+s.Name.Name+"."+name.Name)
				}
			}
		}
	}
	return found
}

func receiver(expr ast.Expr) string {
	switch e := expr.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}
