// Command magikpodd is part of magikpod.
package main

func main() {}
